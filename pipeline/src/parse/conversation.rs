//! A raw row becomes a conversation, or is dropped by a named reason.
//!
//! In: one row as JSON (from a JSONL line or a table's columns). Out: [`Conversation`]: messages
//! with a known role and text content, tools, category, licence. Known shapes, by their columns:
//!
//! | shape | columns |
//! |---|---|
//! | messages | `messages` (OpenAI) or `conversations`/`conversation` (ShareGPT: from, value) |
//! | Nemotron | `input` (list of messages, or a string) and `output`, optional `system_prompt` |
//! | Alpaca | `instruction` and `output`, optional `input` |
//! | completion | `prompt` and `completion` or `response`; `question` and `answer` |
//!
//! `tools` may stand beside any of them, as a list or as JSON in a string.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Why a row is left out. The names are part of the format: they stand in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The line is not JSON (lone surrogates and nesting past 128 levels included) or not an
    /// object.
    BadJson,
    /// The line is longer than the limit.
    LineTooLong,
    /// The line is not UTF-8.
    BadUtf8,
    /// None of the known shapes.
    UnknownShape,
    /// No messages, or none besides the answer.
    NoPrompt,
    /// A message without text.
    NullContent,
    /// Content that is not text (images, audio, numbers).
    NonTextContent,
    /// A role no template knows.
    UnknownRole,
    /// No assistant turn.
    NoAssistant,
    /// The answer is empty.
    EmptyResponse,
    /// The text holds Unicode noncharacters that we use as marks.
    ReservedCharacters,
    /// Control-token strings in the text, under the `reject` policy.
    SpecialText,
    /// The mask token in the text, under `as-special`.
    MaskInText,
    /// The template refuses this conversation.
    TemplateRefused,
    /// The template deletes or rewrites assistant text.
    AssistantTextLost,
    /// The assistant's part cannot be told apart in the rendered text.
    NoAssistantSpan,
    /// Longer than a row, under the `drop` policy.
    TooLong,
    /// No whole turn fits, under the `turns` policy.
    FirstTurnTooLong,
    /// The prompt fills the row: no response token is left.
    PromptTooLong,
    /// Nothing in it carries loss.
    NoLabel,
    /// The tokenizer failed on it.
    TokenizerFailed,
    /// Seen before, under `--dedup`.
    Duplicate,
}

impl DropReason {
    /// Every reason, in the order of the flow.
    pub const ALL: [DropReason; 22] = [
        DropReason::BadJson,
        DropReason::LineTooLong,
        DropReason::BadUtf8,
        DropReason::UnknownShape,
        DropReason::NoPrompt,
        DropReason::NullContent,
        DropReason::NonTextContent,
        DropReason::UnknownRole,
        DropReason::NoAssistant,
        DropReason::EmptyResponse,
        DropReason::ReservedCharacters,
        DropReason::SpecialText,
        DropReason::MaskInText,
        DropReason::TemplateRefused,
        DropReason::AssistantTextLost,
        DropReason::NoAssistantSpan,
        DropReason::TooLong,
        DropReason::FirstTurnTooLong,
        DropReason::PromptTooLong,
        DropReason::NoLabel,
        DropReason::TokenizerFailed,
        DropReason::Duplicate,
    ];

    /// Whether it says that there is no token to learn from, of which a run bears a share only
    /// (`--max-unsupervised`).
    pub fn is_unsupervised(self) -> bool {
        matches!(
            self,
            DropReason::NoLabel | DropReason::PromptTooLong | DropReason::NoAssistantSpan
        )
    }

    /// The name in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::BadJson => "bad_json",
            DropReason::LineTooLong => "line_too_long",
            DropReason::BadUtf8 => "bad_utf8",
            DropReason::UnknownShape => "unknown_shape",
            DropReason::NoPrompt => "no_prompt",
            DropReason::NullContent => "null_content",
            DropReason::NonTextContent => "non_text_content",
            DropReason::UnknownRole => "unknown_role",
            DropReason::NoAssistant => "no_assistant",
            DropReason::EmptyResponse => "empty_response",
            DropReason::ReservedCharacters => "reserved_characters",
            DropReason::SpecialText => "special_text",
            DropReason::MaskInText => "mask_in_text",
            DropReason::TemplateRefused => "template_refused",
            DropReason::AssistantTextLost => "assistant_text_lost",
            DropReason::NoAssistantSpan => "no_assistant_span",
            DropReason::TooLong => "too_long",
            DropReason::FirstTurnTooLong => "first_turn_too_long",
            DropReason::PromptTooLong => "prompt_too_long",
            DropReason::NoLabel => "no_label",
            DropReason::TokenizerFailed => "tokenizer_failed",
            DropReason::Duplicate => "duplicate",
        }
    }
}

/// One message, as templates see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Message<'a> {
    /// system, developer, user, assistant, tool, function or ipython.
    pub role: Cow<'a, str>,
    /// Its text.
    #[serde(default)]
    pub content: Cow<'a, str>,
    /// Calls the assistant makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The call a tool result answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The tool's or speaker's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl<'a> Message<'a> {
    /// A plain message.
    pub fn new(role: impl Into<Cow<'a, str>>, content: impl Into<Cow<'a, str>>) -> Self {
        Message { role: role.into(), content: content.into(), ..Default::default() }
    }
    /// Whether the assistant speaks.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// What a row holds: category, licence (both of a dropped row too), conversation or the reason why
/// not.
pub type Read<'a> =
    (Option<Cow<'a, str>>, Option<Cow<'a, str>>, Result<Conversation<'a>, DropReason>);

/// One training example.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation<'a> {
    /// At least one message before an assistant's, and one of the assistant's.
    pub messages: Vec<Message<'a>>,
    /// Tool declarations, as templates expect them.
    pub tools: Option<Value>,
}

/// Hash of what is said, for the eval split and for finding duplicates: the first 16 bytes of a
/// sha256 over roles, contents and calls.
pub fn fingerprint(c: &Conversation) -> u128 {
    use sha2::Digest;
    let mut h = sha2::Sha256::new();
    for m in &c.messages {
        for part in [m.role.as_bytes(), m.content.as_bytes()] {
            h.update((part.len() as u64).to_le_bytes());
            h.update(part);
        }
        if let Some(calls) = &m.tool_calls {
            h.update(calls.to_string());
        }
    }
    let digest = h.finalize();
    digest.iter().take(16).fold(0, |n, b| (n << 8) | u128::from(*b))
}

type Row = Map<String, Value>;

/// The conversation in a row.
pub fn from_row(mut row: Row) -> Read<'static> {
    let mut text = |keys: &[&str]| -> Option<Cow<'static, str>> {
        keys.iter().find_map(|k| match row.remove(*k) {
            Some(Value::String(s)) if !s.is_empty() => Some(s.into()),
            _ => None,
        })
    };
    let (category, licence) = (text(&["category"]), text(&["license", "licence"]));
    (category, licence, read(row))
}

fn read(mut row: Row) -> Result<Conversation<'static>, DropReason> {
    let messages = messages(&mut row)?;
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

fn messages(row: &mut Row) -> Result<Vec<Message<'static>>, DropReason> {
    for key in ["messages", "conversations", "conversation"] {
        match row.remove(key) {
            Some(Value::Array(list)) => {
                let mut out = Vec::with_capacity(list.len() + 1);
                system_prompt(row, &mut out)?;
                return list.into_iter().try_fold(out, |mut out, m| {
                    out.push(message(m)?);
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
        system_prompt(row, &mut out)?;
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
        system_prompt(row, &mut out)?;
        match row.remove(prompt) {
            Some(Value::Array(list)) if list.is_empty() => return Err(DropReason::NoPrompt),
            Some(Value::Array(list)) => {
                for m in list {
                    out.push(message(m)?);
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
                    out.push(message(m)?);
                }
            }
            Some(Value::Null) | None => return Err(DropReason::NullContent),
            Some(_) => return Err(DropReason::NonTextContent),
        }
        return Ok(out);
    }
    Err(DropReason::UnknownShape)
}

fn system_prompt(row: &mut Row, out: &mut Vec<Message<'static>>) -> Result<(), DropReason> {
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

/// The role that a role's name means, for names that mean no more than a role.
pub fn plain_role(name: &str) -> Option<&'static str> {
    Some(match name {
        "system" => "system",
        "developer" => "developer",
        "user" | "human" => "user",
        "assistant" | "gpt" | "bot" | "model" | "chatgpt" => "assistant",
        "tool" | "observation" | "tool_response" => "tool",
        "function" => "function",
        "ipython" => "ipython",
        _ => return None,
    })
}

/// One message of a list, in OpenAI's or ShareGPT's keys.
fn message(v: Value) -> Result<Message<'static>, DropReason> {
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
        Some(Value::Array(parts)) => text_of_parts(parts)?,
        Some(Value::Null) | None if tool_calls.is_some() => String::new(),
        Some(Value::Null) | None => return Err(DropReason::NullContent),
        Some(_) => return Err(DropReason::NonTextContent),
    };
    let role = match role.as_str() {
        "function_call" | "tool_call" => {
            // ShareGPT: the call as JSON text.
            let call: Value = serde_json::from_str(&content).map_err(|_| DropReason::BadJson)?;
            let calls = if call.is_array() { call } else { Value::Array(vec![call]) };
            tool_calls = Some(calls);
            content.clear();
            "assistant"
        }
        role => plain_role(role).ok_or(DropReason::UnknownRole)?,
    };
    if let Some(Value::String(thought)) = m.remove("reasoning_content")
        && role == "assistant"
        && !thought.is_empty()
    {
        content = format!(
            "<think>\n{}\n</think>\n\n{}",
            thought.trim_matches('\n'),
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

/// The text of a content list of `{"type": "text", "text": …}` parts.
fn text_of_parts(parts: Vec<Value>) -> Result<String, DropReason> {
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

/// Whether there is something to answer, and an answer.
pub fn validate(messages: &[Message]) -> Result<(), DropReason> {
    let Some(last) = messages.iter().rposition(Message::is_assistant) else {
        return Err(if messages.is_empty() {
            DropReason::NoPrompt
        } else {
            DropReason::NoAssistant
        });
    };
    if !messages.iter().any(|m| m.role != "system" && m.role != "assistant") {
        return Err(DropReason::NoPrompt);
    }
    if messages[last].content.is_empty() && messages[last].tool_calls.is_none() {
        return Err(DropReason::EmptyResponse);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(v: Value) -> Result<Conversation<'static>, DropReason> {
        match v {
            Value::Object(m) => from_row(m).2,
            _ => Err(DropReason::BadJson),
        }
    }
    fn talk(v: Value) -> Vec<(String, String)> {
        read(v)
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
    fn shapes() {
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
            assert_eq!(talk(v.clone()), want, "{v}");
        }
        assert_eq!(talk(json!({"instruction": "q", "input": "i", "output": "a"}))[0].1, "q\n\ni");
    }

    #[test]
    fn reasons() {
        for (v, why) in [
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
            assert_eq!(read(v.clone()).unwrap_err(), why, "{v}");
        }
    }

    #[test]
    fn tools_and_thoughts() {
        let c = read(json!({"tools": "[{\"name\": \"f\"}]", "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "r", "tool_call_id": "1"},
            {"role": "assistant", "content": "a", "reasoning_content": "t"}]}))
        .unwrap();
        assert_eq!(c.tools, Some(json!([{"name": "f"}])));
        assert_eq!(c.messages[1].content, "");
        assert!(c.messages[1].tool_calls.is_some());
        assert_eq!(c.messages[3].content, "<think>\nt\n</think>\n\na");
        let c = read(json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{\"name\": \"f\"}"}, {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"}]})).unwrap();
        assert_eq!(c.messages[1].tool_calls, Some(json!([{"name": "f"}])));
        assert_eq!(c.messages[2].role, "tool");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|d| d.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
