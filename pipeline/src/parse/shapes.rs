//! Rows of any known shape become conversations.
//!
//! In: one row as a JSON object, from a JSON line or from the columns of a table. Out: a
//! [`ParsedRow`]. This is the reference implementation: the faster `fast_columns.rs` and
//! `fast_json.rs` must give the same result for every row they accept. The shape is chosen by the
//! columns, the first that matches:
//!
//! | shape | columns |
//! |---|---|
//! | messages | `messages` (OpenAI) or `conversations`/`conversation` (ShareGPT: from, value) |
//! | Alpaca | `instruction` and `output`, optional `input` |
//! | Nemotron | `input` (list of messages, or a string) and `output` |
//! | completion | `prompt` and `completion`, `response` or `chosen`; `question` and `answer` |
//!
//! Any shape may have a `system_prompt` or `system` column, and `tools` as a list or as JSON in a
//! string.

use crate::parse::conversation::{Conversation, Message, ParsedRow, canonical_role, validate};
use crate::parse::drop_reason::DropReason;
use serde_json::{Map, Value};
use std::borrow::Cow;

type Row = Map<String, Value>;

/// Category, licence and conversation of a row.
pub(crate) fn parse_row(mut row: Row) -> ParsedRow<'static> {
    let mut text = |keys: &[&str]| -> Option<Cow<'static, str>> {
        keys.iter().find_map(|k| match row.remove(*k) {
            Some(Value::String(s)) if !s.is_empty() => Some(s.into()),
            _ => None,
        })
    };
    let (category, licence) = (text(&["category"]), text(&["license", "licence"]));
    ParsedRow { category, licence, conversation: parse_conversation(row) }
}

fn parse_conversation(mut row: Row) -> Result<Conversation<'static>, DropReason> {
    let messages = take_messages(&mut row)?;
    let tools = match row.remove("tools") {
        Some(Value::String(s)) if !s.trim().is_empty() => {
            Some(serde_json::from_str(&s).map_err(|_| DropReason::BadJson)?)
        }
        Some(v @ Value::Array(_)) => Some(v),
        _ => None,
    };
    let tools = tools.filter(|t: &Value| t.as_array().is_some_and(|a| !a.is_empty()));
    validate(&messages)?;
    Ok(Conversation { messages, tools })
}

/// Removes the columns of the row's shape and gives its messages.
fn take_messages(row: &mut Row) -> Result<Vec<Message<'static>>, DropReason> {
    for key in ["messages", "conversations", "conversation"] {
        match row.remove(key) {
            Some(Value::Array(list)) => {
                let mut out = Vec::with_capacity(list.len() + 1);
                take_system_prompt(row, &mut out)?;
                return list.into_iter().try_fold(out, |mut out, m| {
                    out.push(parse_message(m)?);
                    Ok(out)
                });
            }
            Some(Value::Null) => return Err(DropReason::NoPrompt),
            Some(_) => return Err(DropReason::UnknownShape),
            None => {}
        }
    }
    if row.contains_key("instruction") {
        let instruction = take_text(row, "instruction")?;
        let input = match row.remove("input") {
            Some(Value::String(s)) => s,
            _ => String::new(),
        };
        let mut out = Vec::with_capacity(3);
        take_system_prompt(row, &mut out)?;
        let user =
            if input.trim().is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
        out.push(Message::new("user", user));
        out.push(Message::new("assistant", take_text(row, "output")?));
        return Ok(out);
    }
    for (prompt, answers) in [
        ("input", &["output"][..]),
        ("prompt", &["completion", "response", "chosen"][..]),
        ("question", &["answer", "response"][..]),
    ] {
        let Some(answer) =
            answers.iter().find(|a| row.contains_key(**a)).filter(|_| row.contains_key(prompt))
        else {
            continue;
        };
        let mut out = Vec::with_capacity(4);
        take_system_prompt(row, &mut out)?;
        match row.remove(prompt) {
            Some(Value::Array(list)) if list.is_empty() => return Err(DropReason::NoPrompt),
            Some(Value::Array(list)) => {
                for m in list {
                    out.push(parse_message(m)?);
                }
            }
            Some(Value::String(s)) => out.push(Message::new("user", s)),
            Some(Value::Null) | None => return Err(DropReason::NoPrompt),
            Some(_) => return Err(DropReason::NonTextContent),
        }
        match row.remove(*answer) {
            Some(Value::String(s)) => out.push(Message::new("assistant", s)),
            Some(Value::Array(list)) => {
                for m in list {
                    out.push(parse_message(m)?);
                }
            }
            Some(Value::Null) | None => return Err(DropReason::NullContent),
            Some(_) => return Err(DropReason::NonTextContent),
        }
        return Ok(out);
    }
    Err(DropReason::UnknownShape)
}

fn take_system_prompt(row: &mut Row, out: &mut Vec<Message<'static>>) -> Result<(), DropReason> {
    for key in ["system_prompt", "system"] {
        match row.remove(key) {
            Some(Value::String(s)) if !s.is_empty() => {
                out.push(Message::new("system", s));
                return Ok(());
            }
            Some(Value::String(_)) | Some(Value::Null) | None => {}
            Some(_) => return Err(DropReason::NonTextContent),
        }
    }
    Ok(())
}

fn take_text(row: &mut Row, key: &str) -> Result<String, DropReason> {
    match row.remove(key) {
        Some(Value::String(s)) => Ok(s),
        Some(Value::Null) | None => Err(DropReason::NullContent),
        Some(_) => Err(DropReason::NonTextContent),
    }
}

/// One message of a list, with the keys of OpenAI (`role`, `content`) or ShareGPT (`from`,
/// `value`). `reasoning_content` goes in front of the content, as a `<think>` block.
fn parse_message(v: Value) -> Result<Message<'static>, DropReason> {
    let Value::Object(mut m) = v else {
        return Err(if v.is_null() { DropReason::NullContent } else { DropReason::UnknownShape });
    };
    let role = match m.remove("role").or_else(|| m.remove("from")) {
        Some(Value::String(s)) => s,
        _ => return Err(DropReason::UnknownRole),
    };
    let mut tool_calls =
        m.remove("tool_calls").filter(|t| t.as_array().is_some_and(|a| !a.is_empty()));
    let content = m.remove("content").or_else(|| m.remove("value"));
    let mut content = match content {
        Some(Value::String(s)) => s,
        Some(Value::Array(parts)) => join_text_parts(parts)?,
        Some(Value::Null) | None if tool_calls.is_some() => String::new(),
        Some(Value::Null) | None => return Err(DropReason::NullContent),
        Some(_) => return Err(DropReason::NonTextContent),
    };
    let role = match role.as_str() {
        "function_call" | "tool_call" => {
            // ShareGPT writes a tool call as JSON in the text.
            let call: Value = serde_json::from_str(&content).map_err(|_| DropReason::BadJson)?;
            let calls = if call.is_array() { call } else { Value::Array(vec![call]) };
            tool_calls = Some(calls);
            content.clear();
            "assistant"
        }
        role => canonical_role(role).ok_or(DropReason::UnknownRole)?,
    };
    if let Some(Value::String(reasoning)) = m.remove("reasoning_content")
        && role == "assistant"
        && !reasoning.is_empty()
    {
        content = format!(
            "<think>\n{}\n</think>\n\n{}",
            reasoning.trim_matches('\n'),
            content.trim_start_matches('\n')
        );
    }
    let mut text = |k: &str| m.remove(k).and_then(|v| v.as_str().map(String::from));
    Ok(Message {
        role: role.into(),
        content: content.into(),
        tool_calls,
        tool_call_id: text("tool_call_id"),
        name: text("name"),
    })
}

/// The text of a content list whose parts are strings or `{"type": "text", "text": …}`.
fn join_text_parts(parts: Vec<Value>) -> Result<String, DropReason> {
    let mut out = String::new();
    for p in parts {
        match p {
            Value::String(s) => out.push_str(&s),
            Value::Object(mut o) => match o.remove("text") {
                Some(Value::String(s)) if o.get("type").is_none_or(|t| t == "text") => {
                    out.push_str(&s)
                }
                _ => return Err(DropReason::NonTextContent),
            },
            _ => return Err(DropReason::NonTextContent),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(v: Value) -> Result<Conversation<'static>, DropReason> {
        match v {
            Value::Object(row) => parse_row(row).conversation,
            _ => Err(DropReason::BadJson),
        }
    }
    fn roles_and_texts(v: Value) -> Vec<(String, String)> {
        parse(v)
            .unwrap()
            .messages
            .into_iter()
            .map(|m| (m.role.into_owned(), m.content.into_owned()))
            .collect()
    }
    fn pairs(v: &[(&str, &str)]) -> Vec<(String, String)> {
        v.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn every_shape_gives_the_same_messages() {
        let want = pairs(&[("system", "s"), ("user", "q"), ("assistant", "a")]);
        for v in [
            json!({"input": [{"role": "user", "content": "q"}], "output": "a", "system_prompt": "s"}),
            json!({"input": "q", "output": "a", "system_prompt": "s", "category": "x"}),
            json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]}),
            json!({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"instruction": "q", "input": "", "output": "a", "system": "s"}),
            json!({"prompt": "q", "completion": "a", "system": "s"}),
            json!({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}),
            json!({"question": "q", "answer": "a", "system": "s"}),
        ] {
            assert_eq!(roles_and_texts(v.clone()), want, "{v}");
        }
        assert_eq!(
            roles_and_texts(json!({"instruction": "q", "input": "i", "output": "a"}))[0].1,
            "q\n\ni"
        );
    }

    #[test]
    fn drop_reasons() {
        for (v, reason) in [
            (json!([1]), DropReason::BadJson),
            (json!({"text": "x"}), DropReason::UnknownShape),
            (json!({"input": null, "output": "a"}), DropReason::NoPrompt),
            (json!({"input": [], "output": "a"}), DropReason::NoPrompt),
            (
                json!({"input": [{"role": "user", "content": null}], "output": "a"}),
                DropReason::NullContent,
            ),
            (json!({"input": "q", "output": null}), DropReason::NullContent),
            (json!({"input": "q", "output": ""}), DropReason::EmptyResponse),
            (json!({"input": "q", "output": 3}), DropReason::NonTextContent),
            (json!({"messages": [{"role": "user", "content": "q"}]}), DropReason::NoAssistant),
            (
                json!({"messages": [{"role": "wizard", "content": "q"}, {"role": "assistant", "content": "a"}]}),
                DropReason::UnknownRole,
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]}),
                DropReason::NonTextContent,
            ),
            (json!({"messages": [{"role": "assistant", "content": "a"}]}), DropReason::NoPrompt),
            (json!({"messages": null}), DropReason::NoPrompt),
        ] {
            assert_eq!(parse(v.clone()).unwrap_err(), reason, "{v}");
        }
    }

    #[test]
    fn tools_and_reasoning() {
        let c = parse(json!({"tools": "[{\"name\": \"f\"}]", "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "r", "tool_call_id": "1"},
            {"role": "assistant", "content": "a", "reasoning_content": "t"}]}))
        .unwrap();
        assert_eq!(c.tools, Some(json!([{"name": "f"}])));
        assert_eq!(c.messages[1].content, "");
        assert!(c.messages[1].tool_calls.is_some());
        assert_eq!(c.messages[3].content, "<think>\nt\n</think>\n\na");
        let c = parse(json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{\"name\": \"f\"}"}, {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"}]})).unwrap();
        assert_eq!(c.messages[1].tool_calls, Some(json!([{"name": "f"}])));
        assert_eq!(c.messages[2].role, "tool");
    }
}
