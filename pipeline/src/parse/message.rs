//! One message of a list.
//!
//! In: a JSON object with the keys of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`).
//! Out: a [`Message`]. Tool calls are accepted in every usual form (`tool_calls.rs`), thoughts as
//! `reasoning_content`, `reasoning`, `thinking` or as parts of the content.

use crate::parse::conversation::{Message, canonical_role};
use crate::parse::drop_reason::DropReason;
use crate::parse::loss_flags::take_no_loss;
use crate::parse::tool_calls::{function_call, parse_tool_calls, parse_tool_responses};
use serde_json::{Map, Value};

/// The message in a JSON object.
pub(crate) fn parse_message(v: Value) -> Result<Message<'static>, DropReason> {
    let Value::Object(mut m) = v else {
        return Err(if v.is_null() { DropReason::NullContent } else { DropReason::UnknownShape });
    };
    let role = match m.remove("role").or_else(|| m.remove("from")) {
        Some(Value::String(s)) => s,
        _ => return Err(DropReason::UnknownRole),
    };
    let mut tool_calls = parse_tool_calls(m.remove("tool_calls").unwrap_or_default())?;
    if let Some(call) = function_call(m.remove("function_call").unwrap_or_default())? {
        if tool_calls.is_some() {
            return Err(DropReason::BadToolCalls);
        }
        tool_calls = Some(call);
    }
    let tool_responses = parse_tool_responses(m.remove("tool_responses").unwrap_or_default())?;
    let mut thoughts = take_thoughts(&mut m)?;
    let mut content = match m.remove("content").or_else(|| m.remove("value")) {
        Some(Value::String(s)) => s,
        Some(Value::Array(parts)) => join_parts(parts, &mut thoughts)?,
        Some(Value::Null) | None if tool_calls.is_some() => String::new(),
        Some(Value::Null) | None => return Err(DropReason::NullContent),
        Some(_) => return Err(DropReason::NonTextContent),
    };
    let role = match role.as_str() {
        "function_call" | "tool_call" => {
            // ShareGPT writes a tool call as JSON in the text.
            let calls = parse_tool_calls(Value::String(std::mem::take(&mut content)))?;
            tool_calls = Some(calls.ok_or(DropReason::BadToolCalls)?);
            "assistant"
        }
        role => canonical_role(role).ok_or(DropReason::UnknownRole)?,
    };
    let no_loss = take_no_loss(&mut m, role == "assistant")?;
    if role != "assistant" {
        if tool_calls.is_some() {
            return Err(DropReason::BadToolCalls);
        }
        thoughts = None;
    }
    let mut text = |k: &str| m.remove(k).and_then(|v| v.as_str().map(String::from));
    Ok(Message {
        role: role.into(),
        content: content.into(),
        tool_calls,
        tool_responses,
        tool_call_id: text("tool_call_id"),
        name: text("name"),
        reasoning_content: thoughts,
        no_loss,
        ..Default::default()
    })
}

/// The thoughts in a message's own field. Several fields must say the same.
fn take_thoughts(m: &mut Map<String, Value>) -> Result<Option<String>, DropReason> {
    let mut found: Option<String> = None;
    for key in ["reasoning_content", "reasoning", "thinking"] {
        match m.remove(key) {
            Some(Value::String(s)) if !s.is_empty() => match &found {
                Some(other) if *other != s => return Err(DropReason::NonTextContent),
                _ => found = Some(s),
            },
            Some(Value::Array(parts)) if !parts.is_empty() => {
                return Err(DropReason::NonTextContent);
            }
            Some(Value::Object(_)) => return Err(DropReason::NonTextContent),
            _ => {}
        }
    }
    Ok(found)
}

/// The text of a content list whose parts are strings, `{"type": "text", "text": …}`, or thoughts
/// (`{"type": "thinking", "thinking": …}`), which are appended to `thoughts`.
fn join_parts(parts: Vec<Value>, thoughts: &mut Option<String>) -> Result<String, DropReason> {
    let mut out = String::new();
    for p in parts {
        let mut o = match p {
            Value::String(s) => {
                out.push_str(&s);
                continue;
            }
            Value::Object(o) => o,
            _ => return Err(DropReason::NonTextContent),
        };
        let kind = match o.remove("type") {
            None => "text".to_string(),
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(DropReason::NonTextContent),
        };
        let keys = match kind.as_str() {
            "text" => &["text"][..],
            "thinking" | "reasoning" => &["thinking", "reasoning", "text"][..],
            _ => return Err(DropReason::NonTextContent),
        };
        let Some(Value::String(s)) = keys.iter().find_map(|k| o.remove(*k)) else {
            return Err(DropReason::NonTextContent);
        };
        if kind == "text" {
            out.push_str(&s);
        } else {
            thoughts.get_or_insert_default().push_str(&s);
        }
    }
    if thoughts.as_ref().is_some_and(String::is_empty) {
        *thoughts = None;
    }
    Ok(out)
}
