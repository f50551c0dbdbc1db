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
//! | Alpaca, Dolly | `instruction` and `output` or `response`, optional `input` or `context`, `history` |
//! | Nemotron | `input` (list of messages, or a string) and `output` |
//! | completion | `prompt` and `completion`, `response` or `chosen`; `question` and `answer`; `problem` and `solution`; `query` and `response` |
//! | preference | `chosen` as a list of messages, with or without the prompt in it |
//!
//! Lists of messages may be JSON text. Any shape may have a `system_prompt` or `system` column,
//! tools (`tools.rs`) and a `loss_mask` (`loss_flags.rs`).

use crate::parse::conversation::{Conversation, Message, ParsedRow, validate};
use crate::parse::drop_reason::DropReason;
use crate::parse::json_value::parse_json;
use crate::parse::loss_flags::apply_loss_mask;
use crate::parse::message::parse_message;
use crate::parse::tools::{take_template_kwargs, take_tools};
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
    let mut messages = take_messages(&mut row)?;
    if let Some(mask) = row.remove("loss_mask") {
        apply_loss_mask(mask, &mut messages.all, messages.own)?;
    }
    let tools = take_tools(&mut row)?;
    let template_kwargs = take_template_kwargs(&mut row)?;
    validate(&messages.all)?;
    Ok(Conversation { messages: messages.all, tools, template_kwargs })
}

/// The messages of a row.
#[derive(Default)]
struct Messages {
    all: Vec<Message<'static>>,
    /// How many of them are the row's own list; those before them come from other columns.
    own: usize,
    /// Whether a message has a call in the older `function_call` field.
    older_calls: bool,
}

impl Messages {
    fn push(&mut self, role: &'static str, content: String) {
        self.all.push(Message::new(role, content));
        self.own += 1;
    }

    /// Appends a list of messages. The system prompt of a column is dropped if the list repeats it.
    fn append(&mut self, list: Vec<Value>, row: &mut Row) -> Result<(), DropReason> {
        for mut m in list {
            if let Value::String(text) = &m {
                m = parse_json(text).map_err(|_| DropReason::UnknownShape)?;
            }
            // Tools may be declared in the system message.
            for key in ["tools", "functions"] {
                if let Some(m) = m.as_object_mut()
                    && m.get("role").or(m.get("from")).is_some_and(|r| r == "system")
                    && let Some(tools) = m.remove(key)
                    && row.get(key).is_none_or(Value::is_null)
                {
                    row.insert(key.to_string(), tools);
                }
            }
            let older = m.get("function_call").is_some_and(|call| !call.is_null());
            self.older_calls |= older;
            let mut m = parse_message(m)?;
            // The result of such a call, which is given to templates as a tool call.
            if self.older_calls && m.role == "function" {
                m.role = "tool".into();
            }
            if self.own == 0
                && m.role == "system"
                && self.all.last().is_some_and(|column| column.content == m.content)
            {
                self.all.pop();
            }
            self.all.push(m);
            self.own += 1;
        }
        Ok(())
    }
}

/// A list of messages, as it is or as JSON text.
fn message_list(v: Value) -> Option<Vec<Value>> {
    match v {
        Value::Array(list) => Some(list),
        Value::String(s) if s.trim_start().starts_with('[') => match parse_json(&s) {
            Ok(Value::Array(list)) => Some(list),
            _ => None,
        },
        _ => None,
    }
}

/// Removes the columns of the row's shape and gives its messages.
fn take_messages(row: &mut Row) -> Result<Messages, DropReason> {
    let mut out = Messages::default();
    for key in ["messages", "conversations", "conversation"] {
        match row.remove(key) {
            Some(Value::Null) => return Err(DropReason::NoPrompt),
            Some(v) => {
                let list = message_list(v).ok_or(DropReason::UnknownShape)?;
                take_system_prompt(row, &mut out.all)?;
                out.append(list, row)?;
                return Ok(out);
            }
            None => {}
        }
    }
    if row.contains_key("instruction") {
        let instruction = take_text(row, "instruction")?;
        let more = ["input", "context"].into_iter().find_map(|key| match row.remove(key) {
            Some(Value::String(s)) if !s.trim().is_empty() => Some(s),
            _ => None,
        });
        take_system_prompt(row, &mut out.all)?;
        take_history(row, &mut out)?;
        out.push(
            "user",
            match more {
                None => instruction,
                Some(more) => format!("{instruction}\n\n{more}"),
            },
        );
        let answer = if row.contains_key("output") { "output" } else { "response" };
        if !row.contains_key(answer) {
            return Err(DropReason::UnknownShape);
        }
        out.push("assistant", take_text(row, answer)?);
        return Ok(out);
    }
    for (prompt, answers) in [
        ("input", &["output"][..]),
        ("prompt", &["completion", "response", "chosen"][..]),
        ("question", &["answer", "response"][..]),
        ("problem", &["solution", "answer"][..]),
        ("query", &["response", "answer"][..]),
    ] {
        let Some(answer) =
            answers.iter().find(|a| row.contains_key(**a)).filter(|_| row.contains_key(prompt))
        else {
            continue;
        };
        if prompt == "prompt" && row.get("label") == Some(&Value::Bool(false)) {
            return Err(DropReason::RejectedAnswer);
        }
        take_system_prompt(row, &mut out.all)?;
        match row.remove(prompt) {
            Some(Value::Array(list)) if list.is_empty() => return Err(DropReason::NoPrompt),
            Some(Value::Array(list)) => out.append(list, row)?,
            Some(Value::String(s)) => out.push("user", s),
            Some(Value::Null) | None => return Err(DropReason::NoPrompt),
            Some(_) => return Err(DropReason::NonTextContent),
        }
        match row.remove(*answer) {
            Some(Value::String(s)) => {
                let s = without_prompt(s, out.all.last(), row.get("rejected"));
                out.push("assistant", s);
            }
            Some(Value::Array(list)) => append_answer(list, row, &mut out)?,
            Some(Value::Null) | None => return Err(DropReason::NullContent),
            Some(_) => return Err(DropReason::NonTextContent),
        }
        return Ok(out);
    }
    if let Some(Value::Array(_)) = row.get("chosen")
        && let Some(Value::Array(list)) = row.remove("chosen")
    {
        take_system_prompt(row, &mut out.all)?;
        out.append(list, row)?;
        return Ok(out);
    }
    Err(DropReason::UnknownShape)
}

/// Appends an answer that is a list of messages. It may begin with the prompt once more.
fn append_answer(list: Vec<Value>, row: &mut Row, out: &mut Messages) -> Result<(), DropReason> {
    let mut answer = Messages::default();
    answer.append(list, row)?;
    let prompt = &out.all;
    let repeated = |from: usize| {
        let prompt = &prompt[from..];
        !prompt.is_empty() && answer.all.get(..prompt.len()) == Some(prompt)
    };
    // The answer's list may also lack the system prompt that comes before the prompt.
    let skip = (0..prompt.len())
        .find(|&from| repeated(from) && prompt[..from].iter().all(|m| m.role == "system"));
    if let Some(from) = skip {
        answer.all.drain(..prompt.len() - from);
    }
    out.own += answer.all.len();
    out.all.append(&mut answer.all);
    Ok(())
}

/// An answer without the prompt in front of it, where both answers of a pair repeat the prompt.
fn without_prompt(answer: String, prompt: Option<&Message>, rejected: Option<&Value>) -> String {
    let Some(prompt) = prompt.filter(|p| !p.content.trim().is_empty()) else { return answer };
    let rest = answer.strip_prefix(&*prompt.content).filter(|rest| !rest.trim().is_empty());
    let both = rejected.and_then(Value::as_str).is_some_and(|r| r.starts_with(&*prompt.content));
    match rest.filter(|_| both) {
        Some(rest) => rest.trim_start().to_string(),
        None => answer,
    }
}

/// Appends the earlier turns of an Alpaca row, a list of pairs of question and answer.
fn take_history(row: &mut Row, out: &mut Messages) -> Result<(), DropReason> {
    let pairs = match row.remove("history") {
        Some(Value::Null) | None => return Ok(()),
        Some(v) => message_list(v).ok_or(DropReason::UnknownShape)?,
    };
    for pair in pairs {
        let Value::Array(pair) = pair else { return Err(DropReason::UnknownShape) };
        let Ok([Value::String(question), Value::String(answer)]) = <[Value; 2]>::try_from(pair)
        else {
            return Err(DropReason::UnknownShape);
        };
        out.push("user", question);
        out.push("assistant", answer);
    }
    Ok(())
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
    fn shapes_of_public_sets() {
        let want = pairs(&[("user", "q"), ("assistant", "a")]);
        let (q, a, b) = (
            json!({"role": "user", "content": "q"}),
            json!({"role": "assistant", "content": "a"}),
            json!({"role": "assistant", "content": "bad"}),
        );
        for v in [
            json!({"instruction": "q", "context": "", "response": "a", "category": "x"}),
            json!({"instruction": "q", "response": "a"}),
            json!({"problem": "q", "solution": "a"}),
            json!({"query": "q", "response": "a"}),
            json!({"messages": json!([q, a]).to_string()}),
            json!({"messages": [q.to_string(), a.to_string()]}),
            json!({"prompt": "q", "chosen": [q, a], "rejected": [q, b]}),
            json!({"prompt": [q], "chosen": [q, a], "rejected": [q, b]}),
            json!({"prompt": [q], "chosen": [a], "rejected": [b]}),
            json!({"prompt": "q", "chosen": "a", "rejected": "bad"}),
            json!({"prompt": "q", "chosen": "q a", "rejected": "q bad"}),
            json!({"chosen": [q, a], "rejected": [q, b]}),
            json!({"prompt": "q", "completion": "a", "label": true}),
        ] {
            assert_eq!(roles_and_texts(v.clone()), want, "{v}");
        }
        let history = json!({"instruction": "q2", "output": "a2", "history": [["q", "a"]]});
        assert_eq!(
            roles_and_texts(history),
            pairs(&[("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")])
        );
        let dolly = json!({"instruction": "q", "context": "c", "response": "a"});
        assert_eq!(roles_and_texts(dolly)[0].1, "q\n\nc");
        let mut twice =
            json!({"system_prompt": "s", "messages": [{"role": "system", "content": "s"}, q, a]});
        assert_eq!(roles_and_texts(twice.clone())[0], ("system".into(), "s".into()));
        assert_eq!(roles_and_texts(twice.clone()).len(), 3);
        twice["system_prompt"] = json!("other");
        assert_eq!(roles_and_texts(twice).len(), 4, "two different prompts both stay");
        for (v, reason) in [
            (
                json!({"prompt": "q", "completion": "bad", "label": false}),
                DropReason::RejectedAnswer,
            ),
            (
                json!({"instruction": "q2", "output": "a2", "history": "x"}),
                DropReason::UnknownShape,
            ),
            (json!({"messages": "text"}), DropReason::UnknownShape),
        ] {
            assert_eq!(parse(v.clone()).unwrap_err(), reason, "{v}");
        }
    }

    /// A call in the older form and its result become a tool call and the tool's result.
    #[test]
    fn older_function_calls() {
        let c = parse(json!({"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "r"}, {"role": "assistant", "content": "a"}]}));
        let messages = c.unwrap().messages;
        assert!(messages[1].tool_calls.is_some());
        assert_eq!((&*messages[2].role, messages[2].name.as_deref()), ("tool", Some("f")));
    }

    #[test]
    fn tools_in_the_system_message() {
        let tools = json!([{"name": "f"}]);
        let c = parse(
            json!({"messages": [{"role": "system", "content": "s", "tools": tools.to_string()},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
        );
        assert_eq!(c.unwrap().tools, Some(tools));
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
        assert_eq!(c.messages[3].content, "a");
        assert_eq!(c.messages[3].reasoning_content.as_deref(), Some("t"));
        let c = parse(json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{\"name\": \"f\"}"}, {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"}]})).unwrap();
        assert_eq!(c.messages[1].tool_calls, Some(json!([{"name": "f"}])));
        assert_eq!(c.messages[2].role, "tool");
    }
}
