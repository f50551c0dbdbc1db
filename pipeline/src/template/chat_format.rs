//! The chat format of a model: messages to prompt ids, token ids back to text.
//!
//! In: the folder of a tokenizer or of a model. Out: a [`ChatFormat`], for programs that prompt a
//! model: it puts together the chat template, the rules for control tokens and the tokenizer in the
//! same way as the preparation of training data.

use crate::error::{Error, Result};
use crate::parse::conversation::{Conversation, Message};
use crate::template::adapt::adapt;
use crate::template::budget::Account;
use crate::template::chat::ChatTemplate;
use crate::template::chat_context::ChatContext;
use crate::template::control::ControlTokens;
use crate::template::limits::RENDERS_PER_ROW;
use crate::tokenize::tokenizer::Tokenizer;
use std::path::Path;

/// A tokenizer and its chat template.
///
/// Token ids are `i32`, as in the `input_ids` column of a prepared dataset.
///
/// ```
/// use dlm_prep::{ChatFormat, Message};
///
/// # fn main() -> dlm_prep::Result<()> {
/// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/sample/tokenizer");
/// let format = ChatFormat::load(folder)?;
/// let messages = [Message::new("user", "name: Ada")];
/// assert_eq!(
///     format.render(&messages)?,
///     "<|im_start|>user\nname: Ada<|im_end|>\n<|im_start|>assistant\n"
/// );
/// let ids = format.encode_messages(&messages)?;
/// assert_eq!(ids, format.encode_text(&format.render(&messages)?)?);
/// assert_eq!(format.decode(&ids)?, "user\nname: Ada\nassistant\n");
/// # Ok(())
/// # }
/// ```
pub struct ChatFormat {
    tokenizer: Tokenizer,
    control: ControlTokens,
    /// The template, or why there is none: (origin, reason) of [`Error::Template`].
    template: std::result::Result<ChatTemplate, (String, String)>,
}

impl ChatFormat {
    /// Loads `tokenizer.json` and the chat template of a folder.
    ///
    /// The template is looked up as transformers does (`chat_template.jinja`, then
    /// `tokenizer_config.json`, then `chat_template.json`); a folder without one gets a built-in
    /// template if its tokens show that ChatML or the Llama 3 format fits.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if there is no tokenizer or it cannot be used, [`Error::Io`] and
    /// [`Error::Input`] for files that cannot be read. A missing or broken template is an error of
    /// [`render`](Self::render) and [`encode_messages`](Self::encode_messages) only.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let tokenizer = Tokenizer::load(folder)?;
        let control = ControlTokens::new(tokenizer.added_tokens(), tokenizer.eos_token())?;
        let template = ChatTemplate::load(folder).map_err(|error| match error {
            Error::Template { origin, reason } => (origin, reason),
            other => (folder.display().to_string(), other.to_string()),
        });
        Ok(ChatFormat { tokenizer, control, template })
    }

    /// The text of a conversation, ending where the assistant's next message begins.
    ///
    /// # Errors
    ///
    /// [`Error::Template`] if the folder has no usable template, [`Error::Render`] if the template
    /// refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        self.template()?.render(messages, true)
    }

    /// The token ids of a conversation, ending where the assistant's next message begins.
    ///
    /// Strings in messages that spell a control token are encoded as ordinary text, as
    /// `dlm-prep` does by default (`--special-text text`). For a prompt without earlier assistant
    /// messages, the ids are the ones with which a training row of that conversation begins.
    /// Earlier assistant messages are encoded together with the text around them, whereas a
    /// training row is cut at their edges; ids can differ there if a message begins with white
    /// space.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if a message contains Unicode noncharacters (U+FDD0 to U+FDEF), or a string
    /// that spells a control token and that the template treats specially; otherwise the errors of
    /// [`render`](Self::render) and [`encode_text`](Self::encode_text).
    pub fn encode_messages(&self, messages: &[Message]) -> Result<Vec<i32>> {
        self.encode_chat(messages, &ChatContext::default())
    }

    /// Like [`encode_messages`](Self::encode_messages), with tools and variables of the template.
    /// Tool calls and thoughts in earlier messages are written as in training data.
    ///
    /// # Errors
    ///
    /// Those of [`encode_messages`](Self::encode_messages).
    pub fn encode_chat(&self, messages: &[Message], chat: &ChatContext) -> Result<Vec<i32>> {
        let template = self.template()?;
        let _account = Account::open(RENDERS_PER_ROW);
        let adapted = adapted(template, messages, chat)?;
        let messages = adapted.as_deref().unwrap_or(messages);
        let text = template.render_chat(messages, chat)?;
        let mut scan = self.control.scan_messages(messages);
        chat.tools.iter().for_each(|tools| self.control.scan_json(tools, &mut scan));
        if scan.reserved {
            return Err(Error::Usage(
                "a message contains Unicode noncharacters (U+FDD0 to U+FDEF), which are not text"
                    .to_string(),
            ));
        }
        if !scan.control {
            return self.encode_text(&text);
        }
        let mut escaped = chat.clone();
        escaped.tools.iter_mut().for_each(|tools| self.control.escape_json(tools));
        let escaped = template.render_chat(&self.control.escape_messages(messages), &escaped)?;
        if self.control.unescape(&escaped) != text {
            return Err(Error::Usage(
                "a message contains the text of a control token, and the chat template treats it specially; remove it".to_string(),
            ));
        }
        let (mut ids, mut tokens, mut at) = (Vec::new(), Vec::new(), 0);
        for (piece, control) in self.control.split(&escaped) {
            at += self.control.unescape(piece).len();
            if let Some((id, len)) = control {
                tokens.push((at..at + len, id));
                at += len;
            }
        }
        let tokens = Some(tokens.as_slice());
        if let Some(encoded) =
            self.tokenizer.encode_in_context(&text, &[], tokens, &mut ids, &mut Vec::new())
        {
            return encoded.map(|()| ids);
        }
        for (piece, control) in self.control.split(&escaped) {
            if !piece.is_empty() {
                self.tokenizer.encode_plain(&self.control.unescape(piece), &mut ids)?;
            }
            ids.extend(control.map(|(id, _)| id));
        }
        Ok(ids)
    }

    /// The token ids of a text without the template. Strings that spell a control token become that
    /// token; nothing is added at the ends.
    ///
    /// # Errors
    ///
    /// [`Error::Render`] if the tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Vec<i32>> {
        let mut ids = Vec::new();
        self.tokenizer.encode(text, &mut ids)?;
        Ok(ids)
    }

    /// The text of token ids without control tokens; ids outside the vocabulary are skipped.
    ///
    /// # Errors
    ///
    /// [`Error::Render`] if the tokenizer fails.
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        self.tokenizer.decode(&ids, true)
    }

    /// Whether the template mentions a variable.
    pub fn reads(&self, variable: &str) -> bool {
        let Ok(template) = &self.template else { return false };
        let in_name = |c: char| c.is_alphanumeric() || c == '_';
        template.source().split(|c| !in_name(c)).any(|name| name == variable)
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().map_err(|(origin, reason)| Error::Template {
            origin: origin.clone(),
            reason: reason.clone(),
        })
    }
}

/// The messages as the template reads them, where that is another form.
fn adapted<'m>(
    template: &ChatTemplate,
    messages: &[Message<'m>],
    chat: &ChatContext,
) -> Result<Option<Vec<Message<'m>>>> {
    if !messages.iter().any(Message::has_extras) {
        return Ok(None);
    }
    let conversation = Conversation {
        messages: messages.to_vec(),
        tools: chat.tools.clone(),
        template_kwargs: Some(chat.variables.clone()),
    };
    adapt(template, &conversation).map_err(|reason| {
        Error::Usage(format!(
            "the chat template cannot write the tool calls or thoughts of a message ({})",
            reason.name()
        ))
    })
}
