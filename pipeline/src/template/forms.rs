//! In which form a template reads tool calls and thoughts.
//!
//! In: a way to render sample conversations. Out: [`TemplateForms`]: whether arguments are JSON
//! text or an object, whether calls are below `function`, and in which field thoughts are read. It
//! changes the messages of a conversation accordingly.

use crate::parse::conversation::{DEFAULT_MARKUP, Message, inline_thoughts};
use crate::parse::drop_reason::DropReason;
use crate::parse::json_value::{held_integer, parse_json};
use serde_json::{Value, json};

/// A form of a tool call: whether name and arguments are below `function`, and whether the
/// arguments are JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CallForm {
    below_function: bool,
    as_text: bool,
}

/// The fields in which a template may read thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThoughtField {
    ReasoningContent,
    Reasoning,
    Thinking,
}

/// What a template reads.
#[derive(Debug)]
pub(crate) struct TemplateForms {
    /// The forms of calls of which it writes name and arguments.
    calls: Vec<CallForm>,
    thoughts: Option<ThoughtField>,
    /// The marks around thoughts inside the content.
    markup: (&'static str, &'static str),
}

const NAME: &str = "probe_name";
const ARGUMENTS: &str = r#"{"probe_key": "probe_value"}"#;
const THOUGHTS: &str = "probe thoughts";

fn sample_call(form: CallForm) -> Value {
    let arguments = match form.as_text {
        true => json!(ARGUMENTS),
        false => json!({"probe_key": "probe_value"}),
    };
    match form.below_function {
        true => {
            json!([{"id": "probe0000", "type": "function", "function": {"name": NAME, "arguments": arguments}}])
        }
        false => json!([{"id": "probe0000", "name": NAME, "arguments": arguments}]),
    }
}

fn sample_conversation(answer: Message<'static>) -> Vec<Message<'static>> {
    let mut out = vec![Message::new("user", "question"), answer];
    if out[1].tool_calls.is_some() {
        let mut result = Message::new("tool", "result");
        result.name = Some(NAME.to_string());
        result.tool_call_id = Some("probe0000".to_string());
        out.push(result);
        out.push(Message::new("assistant", "answer"));
    }
    out
}

/// Renders messages with tools; None if the template refuses them.
pub(crate) type Render<'a> = dyn Fn(&[Message], Option<&Value>) -> Option<String> + 'a;

impl TemplateForms {
    /// Finds out what the template reads in conversations with or without tools.
    pub(crate) fn probe(source: &str, with_tools: bool, render: &Render) -> Self {
        let tools = with_tools.then(|| {
            json!([{"type": "function", "function": {"name": "other", "description": "other",
                "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]}}}])
        });
        let render_last = |answer: Message<'static>| {
            render(&sample_conversation(answer)[..2], tools.as_ref()).unwrap_or_default()
        };
        let render = |answer: Message<'static>| {
            render(&sample_conversation(answer), tools.as_ref()).unwrap_or_default()
        };
        let all = [(true, false), (true, true), (false, false), (false, true)];
        let forms = all.map(|(below_function, as_text)| CallForm { below_function, as_text });
        let reads = |form: &CallForm| {
            let mut answer = Message::new("assistant", "");
            answer.tool_calls = Some(sample_call(*form));
            let text = render(answer);
            let arguments = match form.as_text {
                true => text.contains(ARGUMENTS),
                false => text.contains("probe_key") && text.contains("probe_value"),
            };
            text.contains(NAME) && arguments
        };
        let calls: Vec<CallForm> = forms.into_iter().filter(reads).collect();
        let fields =
            [ThoughtField::ReasoningContent, ThoughtField::Reasoning, ThoughtField::Thinking];
        let writes_thoughts = |field: &ThoughtField| {
            let mut plain = Message::new("assistant", "answer");
            set_thoughts(&mut plain, *field, THOUGHTS.to_string());
            let mut calling = Message::new("assistant", "");
            calling.tool_calls = calls.first().map(|form| sample_call(*form));
            set_thoughts(&mut calling, *field, THOUGHTS.to_string());
            // Some templates write the thoughts of a call only until its result is answered.
            render(plain).contains(THOUGHTS)
                || calling.tool_calls.is_some()
                    && (render(calling.clone()).contains(THOUGHTS)
                        || render_last(calling).contains(THOUGHTS))
        };
        let thoughts = fields.into_iter().find(writes_thoughts);
        let others = [
            ("<seed:think>", "</seed:think>"),
            ("<thinking>", "</thinking>"),
            ("<reasoning>", "</reasoning>"),
            ("<thought>", "</thought>"),
        ];
        let has = |marks: &(&str, &str)| source.contains(marks.0) && source.contains(marks.1);
        let own = Some(DEFAULT_MARKUP).filter(has).or_else(|| others.into_iter().find(has));
        TemplateForms { calls, thoughts, markup: own.unwrap_or(DEFAULT_MARKUP) }
    }

    /// Changes a message into the form that the template reads.
    pub(crate) fn adapt(&self, m: &mut Message) -> Result<(), DropReason> {
        if let Some(Value::Array(calls)) = &mut m.tool_calls {
            calls.iter_mut().try_for_each(|call| self.adapt_call(call))?;
        }
        let Some(thoughts) = m.reasoning_content.take() else { return Ok(()) };
        match self.thoughts {
            Some(field) => set_thoughts(m, field, thoughts),
            None => m.content = inline_thoughts(&thoughts, &m.content, self.markup).into(),
        }
        Ok(())
    }

    /// Changes one call into a form that the template reads; as it is if it reads that, or none.
    fn adapt_call(&self, call: &mut Value) -> Result<(), DropReason> {
        let below_function = call.get("function").is_some_and(Value::is_object);
        let arguments = match below_function {
            true => call["function"].get("arguments"),
            false => call.get("arguments"),
        };
        let is_text = arguments.map(Value::is_string);
        let given = CallForm { below_function, as_text: is_text.unwrap_or(false) };
        let distance = |f: &&CallForm| {
            usize::from(f.below_function != given.below_function) * 2
                + usize::from(is_text.is_some() && f.as_text != given.as_text)
        };
        let Some(&wanted) = self.calls.iter().min_by_key(distance) else { return Ok(()) };
        if let (Some(is_text), Some(arguments)) = (
            is_text,
            match below_function {
                true => call["function"].get_mut("arguments"),
                false => call.get_mut("arguments"),
            },
        ) {
            match (is_text, wanted.as_text) {
                (true, false) => *arguments = arguments_object(arguments)?,
                (false, true) => *arguments = Value::String(python_json(arguments)),
                _ => {}
            }
        }
        if wanted.below_function && !below_function {
            let mut function = call.take();
            let id = function.as_object_mut().and_then(|f| f.shift_remove("id"));
            *call = json!({"type": "function", "function": function});
            if let Some(id) = id {
                call["id"] = id;
            }
        } else if !wanted.below_function && below_function {
            let mut inner = call["function"].take();
            if let Some(id) = call.get("id") {
                inner["id"] = id.clone();
            }
            *call = inner;
        }
        Ok(())
    }
}

/// Arguments given as JSON text, as an object.
fn arguments_object(text: &Value) -> Result<Value, DropReason> {
    let text = text.as_str().unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(json!({}));
    }
    match parse_json(text) {
        Ok(v @ Value::Object(_)) => Ok(v),
        _ => Err(DropReason::BadToolCalls),
    }
}

/// JSON with the spaces that Python's `json.dumps` writes.
fn python_json(v: &Value) -> String {
    match v {
        Value::Array(a) => {
            format!("[{}]", a.iter().map(python_json).collect::<Vec<_>>().join(", "))
        }
        Value::Object(o) => {
            let pair = |(k, v): (&String, &Value)| {
                format!("{}: {}", Value::from(k.as_str()), python_json(v))
            };
            format!("{{{}}}", o.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        Value::String(s) => held_integer(s).map_or_else(|| v.to_string(), String::from),
        v => v.to_string(),
    }
}

fn set_thoughts(m: &mut Message, field: ThoughtField, text: String) {
    let slot = match field {
        ThoughtField::ReasoningContent => &mut m.reasoning_content,
        ThoughtField::Reasoning => &mut m.reasoning,
        ThoughtField::Thinking => &mut m.thinking,
    };
    *slot = Some(text);
}
