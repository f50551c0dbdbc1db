//! Loading and rendering a model's chat template.
//!
//! In: a tokenizer folder, a file, or the name of a built-in template. Out: a [`ChatTemplate`],
//! whose output equals that of transformers' `apply_chat_template(tokenize=False)`. In a folder the
//! template is looked up in the order of transformers: `chat_template.jinja`, with
//! `additional_chat_templates/tool_use.jinja` for conversations with tools; `chat_template` in
//! `tokenizer_config.json` (a string, or a list of named templates, of which `default` is used, and
//! `tool_use` for conversations with tools); `chat_template.json`. A folder without any gets a
//! built-in template that fits its tokens.

use crate::config::policies::default_now;
use crate::error::{Error, Result};
use crate::parse::conversation::{Conversation, Message};
use crate::parse::json_value::WithIntegers;
use crate::template::budget::{self, Account};
use crate::template::chat_context::ChatContext;
use crate::template::forms::TemplateForms;
use crate::template::jinja;
use crate::template::jinja_source::{MARK_GENERATION, has_generation};
use crate::template::limits::{FUEL, FUEL_PER_MESSAGE, RENDERS_PER_PROBE};
use crate::template::message_values::messages_value;
use crate::template::placeholder::METHOD_MARK;
use crate::template::python_attributes::may_print_methods;
use crate::template::template_error::{OUT_OF_FUEL, one_line};
use crate::tokenize::special_tokens::{read_json, special_tokens};
use minijinja::Environment;
use minijinja::value::{Serde, Value};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// The ChatML format of Qwen and SmolLM, without a default system prompt.
pub(crate) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// The Llama 3 instruct format, without dates or tools.
pub(crate) const LLAMA3: &str = "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/// What a template reads besides the messages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inputs<'a> {
    /// Tool declarations.
    pub tools: Option<&'a Json>,
    /// Further variables of a conversation, for example `enable_thinking`.
    pub kwargs: Option<&'a Map<String, Json>>,
}

/// How large a template context is; larger ones may cost more.
#[derive(Clone, Copy, Default)]
pub(crate) struct ContextSize {
    /// Number of messages.
    pub messages: usize,
    /// Bytes of their contents.
    pub bytes: usize,
}

impl Inputs<'_> {
    /// Whether there are none.
    pub(crate) fn is_none(&self) -> bool {
        self.tools.is_none() && self.kwargs.is_none()
    }
}

impl<'a> From<Option<&'a Json>> for Inputs<'a> {
    fn from(tools: Option<&'a Json>) -> Self {
        Inputs { tools, kwargs: None }
    }
}

impl<'a> From<&'a Conversation<'_>> for Inputs<'a> {
    fn from(c: &'a Conversation<'_>) -> Self {
        Inputs { tools: c.tools.as_ref(), kwargs: c.template_kwargs.as_ref() }
    }
}

/// A compiled chat template with the special tokens it may use.
pub(crate) struct ChatTemplate {
    env: Environment<'static>,
    tool_env: Option<Environment<'static>>,
    source: String,
    origin: String,
    specials: BTreeMap<String, String>,
    /// Variables of every conversation.
    kwargs: Map<String, Json>,
    /// What it reads in conversations without and with tools.
    forms: [OnceLock<TemplateForms>; 2],
    /// Whether it may print methods, as `{{ d.items }}` does.
    may_print_methods: bool,
    /// Whether it reads contents as lists of parts only, as templates for images do.
    reads_parts_only: OnceLock<bool>,
}

impl ChatTemplate {
    /// The template of a tokenizer folder, or a built-in one that fits its tokens.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        Self::load_at(dir, default_now())
    }

    /// Like [`load`](Self::load); `strftime_now` formats the time `now`.
    pub(crate) fn load_at(dir: &Path, now: jiff::civil::DateTime) -> Result<Self> {
        let specials = special_tokens(dir)?;
        let jinja = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&jinja) {
            Ok(source) => {
                let tool_use = dir.join("additional_chat_templates/tool_use.jinja");
                let tool_use = match std::fs::read_to_string(&tool_use) {
                    Ok(source) => Some(source),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                    Err(e) => return Err(Error::io("reading", &tool_use)(e)),
                };
                return Self::new(source, tool_use, "chat_template.jinja", specials, now);
            }
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
        // The folder of a base model: its vocabulary shows which format its family uses.
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
    #[cfg(test)]
    pub(crate) fn builtin(name: &str) -> Result<Self> {
        Self::builtin_at(name, BTreeMap::new(), default_now())
    }

    /// The template that `--template` names: a built-in or a file.
    pub(crate) fn named(
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

    /// A template from its source. `tool_use` is a second template for conversations with tools.
    pub(crate) fn new(
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
        let rewritten = |env: &Environment| {
            env.get_template("chat").is_ok_and(|t| may_print_methods(t.source()))
        };
        Ok(ChatTemplate {
            may_print_methods: rewritten(&env) || tool_env.as_ref().is_some_and(rewritten),
            env,
            tool_env,
            source,
            origin: origin.to_string(),
            specials,
            kwargs: Map::new(),
            forms: Default::default(),
            reads_parts_only: OnceLock::new(),
        })
    }

    /// Gives every conversation these variables; its own come before them.
    pub(crate) fn with_kwargs(self, kwargs: Map<String, Json>) -> Self {
        ChatTemplate { kwargs, ..self }
    }

    /// The source text of the template.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }
    /// Where the template comes from: a file name or the name of a built-in.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }
    /// A special token of the folder by its name, for example `eos_token`.
    pub(crate) fn special(&self, name: &str) -> Option<&str> {
        self.specials.get(name).map(String::as_str)
    }
    /// The forms of tool calls and thoughts that the template reads in conversations with or
    /// without tools.
    pub(crate) fn forms(&self, with_tools: bool) -> &TemplateForms {
        self.forms[usize::from(with_tools)].get_or_init(|| {
            let _account = Account::open(RENDERS_PER_PROBE);
            TemplateForms::probe(&self.source, with_tools, &|messages, tools| {
                self.render_with(messages, tools, false, false).ok()
            })
        })
    }
    /// Whether the template marks the assistant's text with `{% generation %}` blocks.
    pub(crate) fn has_generation(&self) -> bool {
        has_generation(&self.source)
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the assistant's next
    /// message begins.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_with(messages, None, add_generation_prompt, false)
    }

    /// Like [`render`](Self::render) up to where the assistant's next message begins, with tools
    /// and variables.
    pub(crate) fn render_chat(&self, messages: &[Message], chat: &ChatContext) -> Result<String> {
        let inputs = Inputs { tools: chat.tools.as_ref(), kwargs: Some(&chat.variables) };
        self.render_with(messages, inputs, true, false)
    }

    /// Like [`render`](Self::render), with tools. With `mark_generation`, `{% generation %}` blocks
    /// are enclosed in the characters of [`crate::template::placeholder`].
    pub(crate) fn render_with<'i>(
        &self,
        messages: &[Message],
        inputs: impl Into<Inputs<'i>>,
        add_generation_prompt: bool,
        mark_generation: bool,
    ) -> Result<String> {
        let parts = *self.reads_parts_only.get_or_init(|| {
            let (text, mut samples) = ("zqanswer", vec![Message::new("user", "zqask")]);
            samples.push(Message::new("assistant", text));
            let writes = |parts: bool| {
                let rendered =
                    self.render_messages(&samples, parts, Inputs::default(), false, false);
                rendered.is_ok_and(|r| r.contains(text))
            };
            !writes(false) && writes(true)
        });
        self.render_messages(messages, parts, inputs.into(), add_generation_prompt, mark_generation)
    }

    fn render_messages(
        &self,
        messages: &[Message],
        parts: bool,
        inputs: Inputs,
        add_generation_prompt: bool,
        mark_generation: bool,
    ) -> Result<String> {
        let Inputs { tools, kwargs } = inputs;
        let mut context: BTreeMap<&str, Value> =
            self.specials.iter().map(|(k, v)| (k.as_str(), Value::from(v.as_str()))).collect();
        for (name, value) in self.kwargs.iter().chain(kwargs.into_iter().flatten()) {
            context.insert(name, Value::from(Serde(WithIntegers(value))));
        }
        context.insert("messages", messages_value(messages, parts));
        context.insert(
            "tools",
            tools.map_or(Value::from(()), |t| Value::from(Serde(WithIntegers(t)))),
        );
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        if mark_generation {
            context.insert(MARK_GENERATION, Value::from(true));
        }
        let bytes = messages.iter().map(|m| m.content.len()).sum();
        let size = ContextSize { messages: messages.len(), bytes };
        let text = self.render_marked(Value::from(context), tools.is_some(), size)?;
        match self.may_print_methods.then(|| text.split_once(METHOD_MARK)).flatten() {
            Some((before, _)) => Err(Error::Render(format!(
                "the template prints a method instead of calling it: {}>",
                &before[before.rfind('<').unwrap_or_default()..]
            ))),
            None => Ok(text),
        }
    }

    /// Refuses a template that has no end even for a short conversation.
    ///
    /// # Errors
    /// If it takes all steps that one render has.
    pub(crate) fn check_cost(&self) -> Result<()> {
        let messages = [Message::new("user", "Hi"), Message::new("assistant", "Hello")];
        match self.render(&messages, false) {
            Err(Error::Render(reason)) if reason.starts_with(OUT_OF_FUEL) => Err(Error::Template {
                origin: self.origin().to_string(),
                reason: format!("on a conversation of two words, {reason}"),
            }),
            _ => Ok(()),
        }
    }

    /// Renders any template context, as `dlm-prep render` does with a line of its input.
    pub(crate) fn render_context(
        &self,
        context: Value,
        with_tools: bool,
        size: ContextSize,
    ) -> Result<String> {
        let text = self.render_marked(context, with_tools, size)?;
        Ok(if self.may_print_methods { text.replace(METHOD_MARK, "0") } else { text })
    }

    fn render_marked(&self, context: Value, with_tools: bool, size: ContextSize) -> Result<String> {
        let env = self.tool_env.as_ref().filter(|_| with_tools).unwrap_or(&self.env);
        let more = size.messages as u64 * FUEL_PER_MESSAGE + size.bytes as u64;
        // Little more fuel is not worth a copy of the environment.
        let (fuel, larger) = match more > FUEL / 8 {
            true => (FUEL + more, Some(env.clone())),
            false => (FUEL, None),
        };
        let larger = larger.map(|mut env| {
            env.set_fuel(Some(fuel));
            env
        });
        let env = larger.as_ref().unwrap_or(env);
        let render = || {
            let done = env.get_template("chat")?.render_captured(context)?;
            let used = done.state().fuel_levels().map_or(0, |levels| levels.0);
            Ok((done.into_output(), used))
        };
        budget::paid(fuel, render).map_err(|e| Error::Render(one_line(&e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<Message<'static>> {
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
            t.render(&conversation(), false).unwrap(),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n a <|im_end|>\n"
        );
        assert!(t.render(&conversation()[..2], true).unwrap().ends_with("<|im_start|>assistant\n"));
        let t = ChatTemplate::builtin("llama3").unwrap();
        assert!(
            t.render(&conversation(), false)
                .unwrap()
                .ends_with("<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>")
        );
        assert!(ChatTemplate::builtin("alpaca").is_err());
    }

    #[test]
    fn lookup_order_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let first =
            || ChatTemplate::load(dir.path()).map(|t| t.render(&conversation(), false).unwrap());
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
        let e = ChatTemplate::load(dir.path()).unwrap().render(&conversation(), false).unwrap_err();
        assert!(e.to_string().contains("no system"), "{e}");
        put("chat_template.jinja", "{% for %}");
        assert!(ChatTemplate::load(dir.path()).is_err());
    }
}
