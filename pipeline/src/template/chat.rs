//! A model's chat template: found, loaded, rendered.
//!
//! In: a tokenizer folder, a file, or the name of a built-in. Out: [`ChatTemplate::render`], equal
//! to transformers' `apply_chat_template(tokenize=False)`. Which template, in order (as
//! transformers): `chat_template.jinja`; `chat_template` in `tokenizer_config.json` (a string, or a
//! list of named ones: `default`, and `tool_use` when the conversation has tools);
//! `chat_template.json`; else a built-in, by the tokens the tokenizer has.

use crate::config::policies::default_now;
use crate::error::{Error, Result};
use crate::parse::conversation::Message;
use crate::template::jinja;
use minijinja::Environment;
use minijinja::value::{Serde, Value};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

/// ChatML, as Qwen and SmolLM write it, without a default system prompt.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// The Llama 3 instruct format, without dates or tools.
pub const LLAMA3: &str = "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/// A compiled chat template with the special tokens it may use.
pub struct ChatTemplate {
    env: Environment<'static>,
    tool_env: Option<Environment<'static>>,
    source: String,
    origin: String,
    specials: BTreeMap<String, String>,
}

/// Named special tokens (`bos_token` …) of a tokenizer folder.
pub fn special_tokens(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(Json::Object(map)) = read_json(&dir.join(file))? else {
            continue;
        };
        for name in ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"] {
            let text = match map.get(name) {
                Some(Json::String(s)) => Some(s.as_str()),
                Some(Json::Object(o)) => o.get("content").and_then(Json::as_str),
                _ => None,
            };
            if let Some(text) = text {
                out.insert(name.to_string(), text.to_string());
            }
        }
    }
    Ok(out)
}

/// The JSON in a file, or none where there is no file.
pub fn read_json(path: &Path) -> Result<Option<Json>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::Input {
            path: path.display().to_string(),
            reason: format!("not JSON: {e}"),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", path)(e)),
    }
}

impl ChatTemplate {
    /// The template of a tokenizer folder; a built-in where it has none and its tokens say which.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_at(dir, default_now())
    }

    /// [`load`](Self::load) with the time that `strftime_now` tells.
    pub fn load_at(dir: &Path, now: jiff::civil::DateTime) -> Result<Self> {
        let specials = special_tokens(dir)?;
        let jinja = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&jinja) {
            Ok(source) => return Self::new(source, None, "chat_template.jinja", specials, now),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("reading", &jinja)(e)),
        }
        for file in ["tokenizer_config.json", "chat_template.json"] {
            let Some(config) = read_json(&dir.join(file))? else {
                continue;
            };
            match config.get("chat_template") {
                Some(Json::String(s)) => return Self::new(s.clone(), None, file, specials, now),
                Some(Json::Array(list)) => {
                    let named = |name: &str| {
                        list.iter()
                            .find(|t| t.get("name").and_then(Json::as_str) == Some(name))
                            .and_then(|t| t.get("template"))
                            .and_then(Json::as_str)
                            .map(String::from)
                    };
                    let Some(default) = named("default") else {
                        let names: Vec<_> = list
                            .iter()
                            .filter_map(|t| t.get("name").and_then(Json::as_str))
                            .collect();
                        let reason = format!(
                            "it has templates named {names:?} and none named \"default\"; pick one with --template FILE"
                        );
                        return Err(Error::Template { origin: file.to_string(), reason });
                    };
                    return Self::new(default, named("tool_use"), file, specials, now);
                }
                _ => {}
            }
        }
        // A base model: its vocabulary says which format its family speaks.
        let path = dir.join("tokenizer.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
        let has = |token: &str| text.contains(&format!("\"{token}\""));
        if has("<|im_start|>") && has("<|im_end|>") {
            return Self::builtin_at("chatml", specials, now);
        }
        if has("<|start_header_id|>") && has("<|eot_id|>") {
            return Self::builtin_at("llama3", specials, now);
        }
        Err(Error::Template {
            origin: dir.display().to_string(),
            reason: "no chat_template.jinja, no chat_template in tokenizer_config.json, and no tokens of a known format; give --template chatml, llama3 or a file".to_string(),
        })
    }

    /// A built-in template: `chatml` or `llama3`.
    pub fn builtin(name: &str) -> Result<Self> {
        Self::builtin_at(name, BTreeMap::new(), default_now())
    }

    /// What `--template` names: a built-in, or a file.
    pub fn named(
        name: &str,
        specials: BTreeMap<String, String>,
        now: jiff::civil::DateTime,
    ) -> Result<Self> {
        if matches!(name, "chatml" | "llama3") {
            return Self::builtin_at(name, specials, now);
        }
        let path = Path::new(name);
        let source = std::fs::read_to_string(path).map_err(Error::io("reading", path))?;
        let file = path.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
        Self::new(source, None, &file, specials, now)
    }

    fn builtin_at(
        name: &str,
        mut specials: BTreeMap<String, String>,
        now: jiff::civil::DateTime,
    ) -> Result<Self> {
        let (source, eos) = match name {
            "chatml" => (CHATML, "<|im_end|>"),
            "llama3" => (LLAMA3, "<|eot_id|>"),
            _ => {
                return Err(Error::Usage(format!(
                    "no built-in template {name:?}; there are chatml and llama3"
                )));
            }
        };
        specials.entry("eos_token".to_string()).or_insert_with(|| eos.to_string());
        Self::new(source.to_string(), None, &format!("built-in {name}"), specials, now)
    }

    /// A template from its source; `tool_use` is used instead for conversations with tools.
    pub fn new(
        source: String,
        tool_use: Option<String>,
        origin: &str,
        specials: BTreeMap<String, String>,
        now: jiff::civil::DateTime,
    ) -> Result<Self> {
        let compile = |s: &str| {
            jinja::environment(s, now)
                .map_err(|e| Error::Template { origin: origin.to_string(), reason: one_line(&e) })
        };
        let env = compile(&source)?;
        let tool_env = tool_use.as_deref().map(compile).transpose()?;
        Ok(ChatTemplate { env, tool_env, source, origin: origin.to_string(), specials })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
    /// Where it came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }
    /// Its special tokens by name.
    pub fn special(&self, name: &str) -> Option<&str> {
        self.specials.get(name).map(String::as_str)
    }
    /// Whether it marks the assistant's part with `{% generation %}`.
    pub fn has_generation(&self) -> bool {
        jinja::has_generation(&self.source)
    }

    /// The text of a conversation; with `add_generation_prompt`, ending where the assistant begins
    /// to speak.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, None, add_generation_prompt, false)
    }

    /// [`render`](Self::render) with tools, and on request with marks around `{% generation %}`
    /// blocks.
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        mark: bool,
    ) -> Result<String> {
        let mut context: BTreeMap<&str, Value> =
            self.specials.iter().map(|(k, v)| (k.as_str(), Value::from(v.as_str()))).collect();
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("tools", tools.map_or(Value::from(()), |t| Value::from(Serde(t))));
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        if mark {
            context.insert(jinja::MARK_VARIABLE, Value::from(true));
        }
        self.render_context(Value::from(context), tools.is_some())
    }

    /// Renders any context: what `dlm-prep render` does with a line of its input.
    pub fn render_context(&self, context: Value, with_tools: bool) -> Result<String> {
        let env = self.tool_env.as_ref().filter(|_| with_tools).unwrap_or(&self.env);
        let render = || env.get_template("chat")?.render(context);
        render().map_err(|e| Error::Render(one_line(&e)))
    }
}

/// An error's message without minijinja's listing.
fn one_line(e: &minijinja::Error) -> String {
    let mut out = e.detail().map_or_else(|| e.to_string(), |d| d.to_string());
    if let Some(line) = e.line() {
        out.push_str(&format!(" (line {line} of the template)"));
    }
    out.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Vec<Message<'static>> {
        vec![
            Message::new("system", "s"),
            Message::new("user", "q"),
            Message::new("assistant", " a "),
        ]
    }

    #[test]
    fn built_ins() {
        let t = ChatTemplate::builtin("chatml").unwrap();
        assert_eq!(
            t.render(&talk(), false).unwrap(),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n a <|im_end|>\n"
        );
        assert!(t.render(&talk()[..2], true).unwrap().ends_with("<|im_start|>assistant\n"));
        let t = ChatTemplate::builtin("llama3").unwrap();
        assert!(
            t.render(&talk(), false)
                .unwrap()
                .ends_with("<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>")
        );
        assert!(ChatTemplate::builtin("alpaca").is_err());
    }

    #[test]
    fn found_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let first = || ChatTemplate::load(dir.path()).map(|t| t.render(&talk(), false).unwrap());
        put("tokenizer.json", "{\"added_tokens\": []}");
        assert!(first().is_err());
        put("tokenizer.json", "{\"added_tokens\": [\"<|im_start|>\", \"<|im_end|>\"]}");
        assert!(first().unwrap().starts_with("<|im_start|>system"));
        put(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<s>"}, "chat_template": [{"name": "x", "template": "x"}, {"name": "default", "template": "{{ bos_token }}d"}]}"#,
        );
        assert_eq!(first().unwrap(), "<s>d");
        put("tokenizer_config.json", r#"{"chat_template": "c"}"#);
        assert_eq!(first().unwrap(), "c");
        put("chat_template.jinja", "{{ raise_exception('no ' + messages[0].role) }}");
        let e = ChatTemplate::load(dir.path()).unwrap().render(&talk(), false).unwrap_err();
        assert!(e.to_string().contains("no system"), "{e}");
        put("chat_template.jinja", "{% for %}");
        assert!(ChatTemplate::load(dir.path()).is_err());
    }
}
