//! Whether values that a conversation holds occur in the text that a template made of it.
//!
//! In: text, and the tool calls or thoughts of a message. Out: yes or no. White space, quotes and
//! backslashes are ignored, and a value may stand as it is, as in JSON, or as in XML: templates
//! write the arguments of a call in all these ways.

use crate::parse::conversation::Message;
use crate::parse::drop_reason::DropReason;
use crate::parse::json_value::{held_integer, parse_json};
use crate::parse::tool_calls::name_and_arguments;
use crate::template::alignment::ContentMatch;
use crate::template::chat::{ChatTemplate, Inputs};
use crate::template::python_text::{is_space, python_str};
use minijinja::value::{Serde, Value as TemplateValue};
use serde_json::Value;

/// Text in the form in which values are searched for.
pub(crate) struct Searchable(String);

fn reduced(text: &str) -> String {
    text.chars().filter(|&c| !is_space(c) && !matches!(c, '"' | '\'' | '\\')).collect()
}

impl Searchable {
    pub(crate) fn new(text: &str) -> Self {
        Searchable(reduced(text))
    }

    /// Whether a text occurs, in any of the forms in which templates write it.
    pub(crate) fn has_text(&self, text: &str) -> bool {
        let has = |form: &str| self.0.contains(&reduced(form));
        if has(text) {
            return true;
        }
        let json = Value::from(text).to_string();
        let ascii: String = json
            .chars()
            .flat_map(|c| {
                let mut units = [0; 2];
                let escaped: String = match c.is_ascii() {
                    true => c.to_string(),
                    false => {
                        c.encode_utf16(&mut units).iter().map(|u| format!("u{u:04x}")).collect()
                    }
                };
                escaped.chars().collect::<Vec<_>>()
            })
            .collect();
        let xml = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let quoted = [("&quot;", "&#39;"), ("&#34;", "&#x27;")]
            .map(|(double, single)| xml.replace('"', double).replace('\'', single));
        has(&json) || has(&ascii) || has(&xml) || quoted.iter().any(|q| has(q))
    }

    /// Whether every value inside a JSON value occurs; null counts as absent.
    fn has_values(&self, v: &Value) -> bool {
        match v {
            Value::Null => true,
            Value::Bool(b) => self.0.contains(if *b { "rue" } else { "alse" }),
            Value::Number(n) => {
                self.has_text(&n.to_string())
                    || self.has_text(&python_str(&TemplateValue::from(Serde(v))))
            }
            Value::String(s) => self.has_text(held_integer(s).unwrap_or(s)),
            Value::Array(a) => a.iter().all(|v| self.has_values(v)),
            Value::Object(o) => o.values().all(|v| self.has_values(v)),
        }
    }

    /// Whether the name and the arguments of every call occur.
    pub(crate) fn has_calls(&self, calls: &Value) -> bool {
        calls.as_array().is_some_and(|calls| {
            calls.iter().all(|call| {
                let (name, arguments) = name_and_arguments(call);
                let arguments_found = match arguments {
                    Some(Value::String(s)) => {
                        self.has_text(s) || parse_json(s).is_ok_and(|v| self.has_values(&v))
                    }
                    Some(v) => self.has_values(v),
                    None => true,
                };
                name.is_none_or(|n| self.has_text(n)) && arguments_found
            })
        })
    }
}

/// How a content compares with the turn that should contain it.
pub(crate) fn content_match(turn: &str, content: &str) -> ContentMatch {
    if turn.contains(content) {
        return ContentMatch::Exact;
    }
    let dense = |s: &str| s.chars().filter(|c| !is_space(*c)).collect::<String>();
    match dense(turn).contains(&dense(content)) {
        true => ContentMatch::WhitespaceDiffers,
        false => ContentMatch::Differs,
    }
}

/// Whether the template leaves out results that messages hold themselves: `text`, which it wrote,
/// does not have all their values, or is the same without one of them.
pub(crate) fn responses_lost(
    template: &ChatTemplate,
    messages: &[Message],
    inputs: Inputs,
    text: &str,
) -> bool {
    let mut holders = messages.iter().enumerate().filter(|(_, m)| m.tool_responses.is_some());
    holders.any(|(k, m)| {
        let results = m.tool_responses.iter().filter_map(Value::as_array).flatten();
        let values = results.filter_map(|r| r.get("response").or_else(|| r.get("content")));
        let mut trial = messages.to_vec();
        trial[k].tool_responses = None;
        let without = template.render_with(&trial, inputs, false, false);
        let searchable = Searchable::new(text);
        without.is_ok_and(|t| t == text) || !values.into_iter().all(|v| searchable.has_values(v))
    })
}

/// Why a turn with tool calls or thoughts that cannot be located is dropped. `deletes_thoughts`
/// says whether the template writes other thoughts in their place, for short ones occur anywhere.
pub(crate) fn lost_or_unlocated(
    m: &Message,
    text: &str,
    deletes_thoughts: impl Fn() -> bool,
) -> DropReason {
    let text = Searchable::new(text);
    if m.tool_calls.as_ref().is_some_and(|calls| !text.has_calls(calls)) {
        return DropReason::ToolCallsLost;
    }
    if !text.has_text(&m.content) {
        return DropReason::AssistantTextLost;
    }
    match m.thoughts().is_some_and(|t| !text.has_text(t) || deletes_thoughts()) {
        true => DropReason::AssistantTextLost,
        false => DropReason::NoAssistantSpan,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_in_every_usual_form() {
        let calls = json!([{"function": {"name": "f", "arguments": {
            "a": "line\n\"two\" <é>", "b": [1.0, true, null], "c": {"d": "x"}}}}]);
        let arguments = calls[0]["function"]["arguments"].to_string();
        for text in [
            format!("f({arguments})"),
            format!("f {}", Value::from(arguments.as_str())),
            r#"f {"a": "line\n\"two\" <\u00e9>", "b": [1.0, true, null], "c": {"d": "x"}}"#.into(),
            "f a=line\n\"two\" <é> b=[1.0, True, None] d=x".into(),
            "<f><a>line\n&quot;two&quot; &lt;é&gt;</a>1.0 true x</f>".into(),
        ] {
            assert!(Searchable::new(&text).has_calls(&calls), "{text}");
        }
        for text in ["", "f", "f a=line two <é> 1.0 x", "line\n\"two\" <é> 1.0 true x"] {
            assert!(!Searchable::new(text).has_calls(&calls), "{text}");
        }
    }
}
