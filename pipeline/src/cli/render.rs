//! `dlm-prep render`: shows how a chat template renders conversations, with the spans of the
//! assistant's text.
//!
//! In: one template context per line. Out: one JSON object per line, `{"text", "assistant_spans":
//! [[start, end], …]}` with positions in characters, or `{"error"}`.

use crate::cli::args::RenderArgs;
use crate::cli::console::{ConsoleProgress, ResultWriter};
use crate::config::policies::{LostText, SpecialText};
use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::input::hub::model::resolve_tokenizer;
use crate::parse::conversation::Conversation;
use crate::parse::json_value::{WithIntegers, parse_json};
use crate::parse::shapes;
use crate::template::budget::Account;
use crate::template::chat::{ChatTemplate, ContextSize};
use crate::template::control::ControlTokens;
use crate::template::limits::RENDERS_PER_ROW;
use crate::template::rendered::Rendered;
use crate::template::spans::SpanFinder;
use crate::tokenize::special_tokens::special_tokens;
use crate::tokenize::tokenizer::{AddedToken, TokenizerSource};
use minijinja::value::{Serde, Value};
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader};

/// Renders every line of the input.
pub(super) fn run(a: &RenderArgs) -> Result<()> {
    let now = match a.now.as_deref() {
        Some(t) => Settings::parse_time(t)?,
        None => jiff::Zoned::now().datetime(),
    };
    let renderer = match (&a.tokenizer, &a.template) {
        (Some(tokenizer), None) => {
            let dir = resolve_tokenizer(tokenizer, &ConsoleProgress::default())?;
            let specials = special_tokens(&dir)?;
            let added = TokenizerSource::read(&dir)?.added_tokens().to_vec();
            Renderer::new(ChatTemplate::load_at(&dir, now)?, added, specials)?
        }
        (None, Some(name)) => {
            let t = ChatTemplate::named(name, BTreeMap::new(), now)?;
            let added = likely_control_tokens(t.source());
            Renderer::new(t, added, BTreeMap::new())?
        }
        _ => {
            return Err(Error::Usage("give either --tokenizer or --template".to_string()));
        }
    };
    let file = std::fs::File::open(&a.input).map_err(Error::io("opening", &a.input))?;
    let mut out = ResultWriter::stdout();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(Error::io("reading", &a.input))?;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        let result = match parse_json(&text) {
            Ok(Json::Object(context)) => renderer.line(context),
            Ok(_) => json!({"error": "not a JSON object"}),
            Err(e) => json!({"error": format!("not JSON: {e}")}),
        };
        match result.get("error") {
            _ if a.json => out.write_json(&result)?,
            Some(e) => out.write(&format!("refused: {}\n", e.as_str().unwrap_or("")))?,
            None => out.write(&format!(
                "{}\n-- assistant: {}\n",
                result["text"].as_str().unwrap_or(""),
                result["assistant_spans"]
            ))?,
        }
    }
    out.finish()
}

pub(super) struct Renderer {
    template: ChatTemplate,
    control: ControlTokens,
    specials: BTreeMap<String, String>,
}

impl Renderer {
    /// `added` are the tokenizer's added tokens, `specials` its named special tokens (`eos_token`
    /// …).
    pub(super) fn new(
        template: ChatTemplate,
        added: Vec<AddedToken>,
        specials: BTreeMap<String, String>,
    ) -> Result<Self> {
        let control = ControlTokens::new(&added, specials.get("eos_token").map(String::as_str))?;
        Ok(Renderer { template, control, specials })
    }

    /// The output object of one context.
    pub(super) fn line(&self, mut context: Map<String, Json>) -> Json {
        let _account = Account::open(2 * RENDERS_PER_ROW);
        for (k, v) in &self.specials {
            context.entry(k.clone()).or_insert_with(|| json!(v));
        }
        let with_tools = context.get("tools").is_some_and(|t| !t.is_null());
        let text = match self.text(&context, with_tools) {
            Ok(t) => t,
            Err(e) => return json!({"error": e.to_string()}),
        };
        let spans = self.spans(&context, &text);
        json!({"text": text, "assistant_spans": spans})
    }

    pub(super) fn text(&self, context: &Map<String, Json>, with_tools: bool) -> Result<String> {
        let messages = context.get("messages").and_then(Json::as_array).map_or(0, Vec::len);
        let context = Json::Object(context.clone());
        let bytes = text_bytes(&context);
        let context = Value::from(Serde(WithIntegers(&context)));
        self.template.render_context(context, with_tools, ContextSize { messages, bytes })
    }

    /// The spans of the assistant's text in characters; empty if preparing a dataset would drop the
    /// conversation.
    fn spans(&self, context: &Map<String, Json>, text: &str) -> Vec<[usize; 2]> {
        let generating = context.get("add_generation_prompt").is_some_and(|g| g == &json!(true));
        let row: Map<String, Json> = ["messages", "tools"]
            .iter()
            .filter_map(|k| Some((k.to_string(), context.get(*k)?.clone())))
            .collect();
        let Ok(c) = shapes::parse_row(row).conversation else {
            return Vec::new();
        };
        let Some(r) = self.rendered(&c) else {
            return Vec::new();
        };
        if !(r.text == text || generating && text.starts_with(&r.text)) {
            return Vec::new();
        }
        let at = |byte: usize| r.text.get(..byte).map_or(0, |t| t.chars().count());
        r.spans.iter().map(|s| [at(s.start), at(s.end)]).collect()
    }

    fn rendered(&self, c: &Conversation) -> Option<Rendered> {
        SpanFinder::new(&self.template, &self.control, SpecialText::Text, LostText::Keep)
            .render(c)
            .ok()
    }
}

/// Bytes of all texts in a value.
fn text_bytes(v: &Json) -> usize {
    match v {
        Json::String(s) => s.len(),
        Json::Array(items) => items.iter().map(text_bytes).sum(),
        Json::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 0,
    }
}

/// Strings in a template that look like control tokens, for use without a tokenizer.
fn likely_control_tokens(source: &str) -> Vec<AddedToken> {
    let mut tokens: Vec<String> = [
        "</s>",
        "<s>",
        "<eos>",
        "<bos>",
        "<end_of_turn>",
        "<start_of_turn>",
        "<|im_end|>",
        "<|im_start|>",
        "<|eot_id|>",
        "<|endoftext|>",
        "<|end|>",
    ]
    .iter()
    .map(|s| s.to_string())
    .collect();
    let mut known: HashSet<String> = tokens.iter().cloned().collect();
    for (open, close) in [("<|", "|>"), ("<｜", "｜>")] {
        let mut rest = source;
        while let Some(at) = rest.find(open) {
            rest = &rest[at..];
            match rest[open.len()..].find(close) {
                Some(n) if n < 64 && !rest[..open.len() + n].contains(char::is_whitespace) => {
                    let token = &rest[..open.len() + n + close.len()];
                    if known.insert(token.to_string()) {
                        tokens.push(token.to_string());
                    }
                    rest = &rest[token.len()..];
                }
                _ => rest = &rest[open.len()..],
            }
        }
    }
    tokens
        .into_iter()
        .enumerate()
        .map(|(i, content)| AddedToken { content, id: i as u32, special: true })
        .collect()
}
