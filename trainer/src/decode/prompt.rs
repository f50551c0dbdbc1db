//! Prompts: text, conversations or token ids, as token ids.
//!
//! In: `--prompt` texts, an `--ids` list, or the lines of a JSONL file, each `{"messages": [...]}`,
//! `{"prompt": "..."}` or `{"ids": [...]}`. Out: token ids. Text is a user's message, rendered by
//! the model's chat template with the assistant's turn opened, unless it is asked for as it is.

use std::path::Path;

use dlm_prep::parse::conversation::Message;
use dlm_prep::template::chat::ChatTemplate;
use dlm_prep::template::control::{ControlMatch, ControlText};
use dlm_prep::tokenize::tokenizer::Tokenizer;
use serde::Deserialize;

use crate::error::{Error, Result};

/// One prompt as given.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text of one user's message.
    Text(String),
    /// A conversation that the assistant continues.
    Messages(Vec<Message<'static>>),
    /// Token ids.
    Ids(Vec<i64>),
}

/// One input line; other keys (an expected answer, a task name) are the caller's own and are left
/// alone.
#[derive(Deserialize)]
struct Line {
    messages: Option<Vec<Message<'static>>>,
    prompt: Option<String>,
    ids: Option<Vec<i64>>,
}

/// `1,2,3`, also with spaces.
pub fn parse_ids(text: &str) -> Result<Vec<i64>> {
    let parts = text.split([',', ' ', '\n', '\t']).filter(|part| !part.is_empty());
    let parse = |part: &str| {
        part.parse::<i64>().map_err(|_| {
            Error::Usage(format!(
                "--ids: {part:?} is not a token id; expected whole numbers separated by commas"
            ))
        })
    };
    parts.map(parse).collect()
}

/// The prompts of a JSONL file; empty lines are passed over, any other line that is no prompt is an
/// error naming it.
pub fn read_jsonl(path: &Path) -> Result<Vec<Prompt>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io(path, "reading the prompts", error))?;
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong =
            |what: String| Error::Usage(format!("{}, line {}: {what}", path.display(), number + 1));
        let line: Line = serde_json::from_str(line).map_err(|error| {
            wrong(format!("{error}; expected one of {{\"messages\": [...]}}, {{\"prompt\": \"...\"}}, {{\"ids\": [...]}}"))
        })?;
        prompts.push(match (line.messages, line.prompt, line.ids) {
            (Some(messages), None, None) if messages.is_empty() => {
                return Err(wrong("`messages` is empty".into()));
            }
            (Some(messages), None, None) => Prompt::Messages(messages),
            (None, Some(text), None) => Prompt::Text(text),
            (None, None, Some(ids)) => Prompt::Ids(ids),
            _ => {
                return Err(wrong("expected exactly one of the keys messages, prompt, ids".into()));
            }
        });
    }
    match prompts.is_empty() {
        true => Err(Error::Usage(format!("{}: no prompts in it", path.display()))),
        false => Ok(prompts),
    }
}

/// A folder's tokenizer and, where it has one, its chat template.
pub struct PromptCodec {
    tokenizer: Tokenizer,
    control: ControlText,
    template: std::result::Result<ChatTemplate, String>,
}

impl PromptCodec {
    /// Reads `tokenizer.json` and the template of a folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::load(dir).map_err(usage)?;
        let control =
            ControlText::new(tokenizer.added_tokens(), tokenizer.eos_token()).map_err(usage)?;
        let template = ChatTemplate::load(dir).map_err(|error| error.to_string());
        Ok(PromptCodec { tokenizer, control, template })
    }

    /// Token ids of a prompt. With `raw`, text is encoded as it is, control tokens in it included;
    /// in messages such strings are text, as dlm-prep has them by default.
    pub fn encode(&self, prompt: &Prompt, raw: bool) -> Result<Vec<i64>> {
        let mut ids = Vec::new();
        match prompt {
            Prompt::Ids(ids) => return Ok(ids.clone()),
            Prompt::Text(text) if raw => self.tokenizer.encode(text, &mut ids).map_err(usage)?,
            Prompt::Text(text) => self.chat(&[Message::new("user", text)], &mut ids)?,
            Prompt::Messages(messages) => self.chat(messages, &mut ids)?,
        }
        Ok(ids.into_iter().map(i64::from).collect())
    }

    /// Ids of a conversation with the assistant's turn opened.
    fn chat(&self, messages: &[Message], ids: &mut Vec<i32>) -> Result<()> {
        let no_template =
            |error: &String| Error::Usage(format!("{error}; or give text as it is with --raw"));
        let template = self.template.as_ref().map_err(no_template)?;
        let plain = template.render(messages, true).map_err(usage)?;
        let mut found = ControlMatch::default();
        messages.iter().for_each(|message| self.control.look(&message.content, &mut found));
        if found.reserved {
            return Err(Error::Usage(
                "a message holds Unicode noncharacters (U+FDD0 to U+FDEF), which are no text"
                    .into(),
            ));
        }
        if !found.control {
            return self.tokenizer.encode(&plain, ids).map_err(usage);
        }
        let mut marked = messages.to_vec();
        for message in &mut marked {
            message.content = self.control.mark(&message.content).into();
        }
        let marked = template.render(&marked, true).map_err(usage)?;
        if self.control.unmark(&marked) != plain {
            return Err(Error::Usage(
                "a message holds the text of a control token, and the chat template treats it specially; remove it".into(),
            ));
        }
        for (text, control) in self.control.split(&marked) {
            if !text.is_empty() {
                self.tokenizer.encode_plain(&self.control.unmark(text), ids).map_err(usage)?;
            }
            ids.extend(control.map(|(id, _)| id));
        }
        Ok(())
    }

    /// Text of a completion, without control tokens.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        self.tokenizer.decode(&ids, true).map_err(|error| Error::Model(error.to_string()))
    }
}

fn usage(error: dlm_prep::Error) -> Error {
    Error::Usage(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_from_text() {
        assert_eq!(parse_ids("1,2, 3").unwrap(), [1, 2, 3]);
        assert_eq!(parse_ids("").unwrap(), [0i64; 0]);
        assert!(parse_ids("1,x").unwrap_err().to_string().contains("\"x\""));
    }

    #[test]
    fn lines_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_jsonl(&path)
        };
        let good = read("{\"ids\": [1, 2]}\n\n{\"prompt\": \"q\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n").unwrap();
        assert_eq!(
            good,
            [
                Prompt::Ids(vec![1, 2]),
                Prompt::Text("q".into()),
                Prompt::Messages(vec![Message::new("user", "q")])
            ]
        );
        for (text, words) in [
            ("{\"ids\": [1]}\n{\"idz\": [1]}", "line 2"),
            ("{\"ids\": [1], \"prompt\": \"q\"}", "exactly one"),
            ("{}", "exactly one"),
            ("{\"messages\": []}", "empty"),
            ("{\"ids\": [\"x\"]}", "line 1"),
            ("not json", "line 1"),
            ("\n", "no prompts"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
