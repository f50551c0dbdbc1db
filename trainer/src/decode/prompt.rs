//! Prompts as token ids.
//!
//! In: `--prompt` texts, an `--ids` list, or the lines of a JSONL file, each `{"messages": [...]}`
//! (with `tools` if there are any), `{"prompt": "..."}` or `{"ids": [...]}`. Out: token ids. Text
//! is taken as one user message and rendered by the model's chat template with the generation
//! prompt, unless `--raw` is given.

use std::path::Path;
use std::sync::OnceLock;

use dlm_prep::{ChatContext, ChatFormat, Message, parse_chat};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::source;

/// A prompt before it is encoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// The text of a single user message.
    Text(String),
    /// A conversation that the model continues as the assistant.
    Messages(Vec<Message<'static>>),
    /// A conversation with the tools that the assistant may call.
    WithTools {
        /// The conversation.
        messages: Vec<Message<'static>>,
        /// Tool declarations as a JSON list.
        tools: Value,
    },
    /// Token ids, used without change.
    Ids(Vec<i64>),
}

/// One input line. Other keys (an expected answer, a task name) are ignored.
#[derive(Deserialize)]
struct Line {
    messages: Option<Vec<Value>>,
    #[serde(default)]
    tools: Value,
    prompt: Option<String>,
    ids: Option<Vec<i64>>,
}

/// Parses token ids separated by commas or white space, for example `1,2,3`.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<i64>> {
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

/// The prompts of a JSONL file. Empty lines are skipped; any other line that is not a prompt is a
/// usage error that names the line.
pub(crate) fn read_jsonl(path: &Path) -> Result<Vec<Prompt>> {
    read_lines(path, |line| {
        let line: Line = serde_json::from_str(line).map_err(|error| format!("{error}; {FORMS}"))?;
        line.prompt()
    })
}

/// What a line of prompts may look like.
const FORMS: &str =
    "expected one of {\"messages\": [...]}, {\"prompt\": \"...\"}, {\"ids\": [...]}";

/// The lines of a JSONL file by `parse`, which says what is wrong with a line. Empty lines are
/// skipped; a wrong line, and a file without lines, are usage errors that name the line.
pub(crate) fn read_lines<T>(
    path: &Path,
    parse: impl Fn(&str) -> std::result::Result<T, String>,
) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io(path, "reading the prompts", error))?;
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.map(|(number, line)| {
        parse(line).map_err(|reason| {
            Error::Usage(format!("{}, line {}: {reason}", path.display(), number + 1))
        })
    });
    let parsed: Vec<T> = parsed.collect::<Result<_>>()?;
    match parsed.is_empty() {
        true => Err(Error::Usage(format!("{}: no prompts in it", path.display()))),
        false => Ok(parsed),
    }
}

impl Line {
    /// The prompt of the line, or what is wrong with it.
    fn prompt(self) -> std::result::Result<Prompt, String> {
        match (self.messages, self.prompt, self.ids) {
            (Some(messages), None, None) if messages.is_empty() => {
                Err("`messages` is empty".into())
            }
            (Some(messages), None, None) => {
                match parse_chat(messages, self.tools).map_err(|error| error.to_string())? {
                    (messages, None) => Ok(Prompt::Messages(messages)),
                    (messages, Some(tools)) => Ok(Prompt::WithTools { messages, tools }),
                }
            }
            _ if !self.tools.is_null() => Err("`tools` needs the key messages beside it".into()),
            (None, Some(text), None) => Ok(Prompt::Text(text)),
            (None, None, Some(ids)) => Ok(Prompt::Ids(ids)),
            _ => Err("expected exactly one of the keys messages, prompt, ids".into()),
        }
    }
}

/// The prompt in a line that has been parsed as JSON already; other keys are ignored.
pub(crate) fn of_value(line: Value) -> std::result::Result<Prompt, String> {
    let line: Line = serde_json::from_value(line).map_err(|error| format!("{error}; {FORMS}"))?;
    line.prompt()
}

/// Encodes prompts and decodes completions with the tokenizer of a model folder.
pub(crate) struct PromptCodec {
    format: ChatFormat,
    probes: OnceLock<Vec<i64>>,
}

impl PromptCodec {
    /// Loads the tokenizer and the chat template of a model folder. A folder without a tokenizer is
    /// a usage error, because its model can only be prompted with token ids.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        if !dir.join("tokenizer.json").is_file() {
            return Err(Error::Usage(format!(
                "{} has {}; give token ids with --ids",
                dir.display(),
                source::missing_tokenizer(dir)
            )));
        }
        Ok(PromptCodec { format: ChatFormat::load(dir)?, probes: OnceLock::new() })
    }

    /// Token ids of a prompt; `variables` are given to the chat template.
    pub(crate) fn encode(
        &self,
        prompt: &Prompt,
        variables: &Map<String, Value>,
    ) -> Result<Vec<i64>> {
        let mut chat = ChatContext { tools: None, variables: variables.clone() };
        let ids = match prompt {
            Prompt::Ids(ids) => return Ok(ids.clone()),
            Prompt::Text(text) => self.format.encode_chat(&[Message::new("user", text)], &chat),
            Prompt::Messages(messages) => self.format.encode_chat(messages, &chat),
            Prompt::WithTools { messages, tools } => {
                chat.tools = Some(tools.clone());
                self.format.encode_chat(messages, &chat)
            }
        };
        Ok(ids.map_err(suggest_raw)?.into_iter().map(i64::from).collect())
    }

    /// Token ids of a prompt, of text without the chat template: strings that spell a control token
    /// become that token.
    pub(crate) fn encode_raw(&self, prompt: &Prompt) -> Result<Vec<i64>> {
        let Prompt::Text(text) = prompt else { return self.encode(prompt, &Map::new()) };
        Ok(self.format.encode_text(text)?.into_iter().map(i64::from).collect())
    }

    /// Whether the chat template mentions a variable.
    pub(crate) fn reads(&self, variable: &str) -> bool {
        self.format.reads(variable)
    }

    /// Tokens that show which text another token may still change when they follow it: a letter,
    /// and the bytes of a character that has no token of its own.
    pub(crate) fn probes(&self) -> &[i64] {
        self.probes.get_or_init(|| {
            let encode = |text: &str| self.format.encode_text(text).unwrap_or_default();
            let mut probes: Vec<i64> =
                ["a", "\u{10fffd}"].into_iter().flat_map(encode).map(i64::from).collect();
            probes.sort_unstable();
            probes.dedup();
            probes
        })
    }

    /// The control token that a string spells.
    pub(crate) fn control_token(&self, text: &str) -> Option<i64> {
        let ids = self.format.encode_text(text).ok()?;
        let [id] = ids.as_slice() else { return None };
        let id = i64::from(*id);
        // twice, since some tokenizers take a space from the first token
        self.decode(&[id, id]).ok()?.is_empty().then_some(id)
    }

    /// Text of a completion, without control tokens.
    pub(crate) fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<i32> = ids.iter().filter_map(|id| i32::try_from(*id).ok()).collect();
        Ok(self.format.decode(&ids)?)
    }
}

/// Adds the way around a chat template that is missing or broken.
fn suggest_raw(error: dlm_prep::Error) -> dlm_prep::Error {
    match error {
        dlm_prep::Error::Template { origin, reason } => dlm_prep::Error::Template {
            origin,
            reason: format!("{reason}; or give text as it is with --raw"),
        },
        other => other,
    }
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

    /// The sample tokenizer with another chat template.
    fn folder_with_template(template: &str) -> tempfile::TempDir {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
        let dir = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(sample.join(file), dir.path().join(file)).unwrap();
        }
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        dir
    }

    #[test]
    fn only_wrong_calls_exit_with_2() {
        let text = |content: &str| Prompt::Text(content.to_string());
        let no_tokenizer = tempfile::tempdir().unwrap();
        let error = PromptCodec::load(no_tokenizer.path()).err().unwrap();
        assert_eq!(error.exit_code(), 2, "{error}");
        std::fs::write(no_tokenizer.path().join("tokenizer.json"), "{").unwrap();
        let error = PromptCodec::load(no_tokenizer.path()).err().unwrap();
        assert_eq!(error.exit_code(), 1, "{error}");

        let dir = folder_with_template("{% for %}");
        let codec = PromptCodec::load(dir.path()).unwrap();
        let error = codec.encode(&text("q"), &Map::new()).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        assert!(error.to_string().contains("--raw"), "{error}");
        let raw = codec.encode_raw(&text("q<|im_end|>")).unwrap();
        assert_eq!(codec.decode(&raw).unwrap(), "q");

        let dir = folder_with_template("{{ raise_exception('no') }}");
        let codec = PromptCodec::load(dir.path()).unwrap();
        let error = codec.encode(&text("q"), &Map::new()).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");

        let dir = folder_with_template("{{ messages[0].content }}");
        let codec = PromptCodec::load(dir.path()).unwrap();
        let error = codec.encode(&text("\u{FDD0}"), &Map::new()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert_eq!(codec.decode(&codec.encode(&text("q"), &Map::new()).unwrap()).unwrap(), "q");
    }

    #[test]
    fn lines_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_jsonl(&path)
        };
        let good = read("\u{feff}{\"ids\": [1, 2]}\n\n{\"prompt\": \"q\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n").unwrap();
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
            ("{\"messages\": [{\"role\": \"user\"}]}", "message 1: no content"),
            ("{\"messages\": [{\"role\": \"narrator\", \"content\": \"q\"}]}", "no known role"),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}",
                "not text",
            ),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}], \"tools\": [3]}",
                "tools: decl",
            ),
            ("{\"prompt\": \"q\", \"tools\": []}", "needs the key messages"),
            ("{\"ids\": [\"x\"]}", "line 1"),
            ("not json", "line 1"),
            ("\n", "no prompts"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
