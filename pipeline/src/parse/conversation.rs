//! Conversations: a list of messages that ends with, or at least contains, an assistant turn.
//!
//! This file holds the types and the rules for a valid conversation. `shapes.rs` builds them from
//! rows of any known shape, `fast_columns.rs` and `fast_json.rs` do so faster for the two most
//! common shapes.

use crate::parse::drop_reason::DropReason;
use crate::parse::json_value::with_integers;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// One message, with the fields that chat templates expect.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Message<'a> {
    /// `system`, `developer`, `user`, `assistant`, `tool`, `function` or `ipython`.
    pub role: Cow<'a, str>,
    /// The text, empty where an assistant message consists of tool calls only.
    #[serde(default)]
    pub content: Cow<'a, str>,
    /// Tool calls of an assistant message, as a JSON list.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "with_integers")]
    pub tool_calls: Option<Value>,
    /// In a tool result, the id of the call it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of the tool or of the speaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Results of the tool calls of this message, where they are not messages of their own, as a
    /// JSON list.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "with_integers")]
    pub tool_responses: Option<Value>,
    /// The thoughts that precede the content of an assistant message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same thoughts, for templates that read them under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same thoughts, for templates that read them under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// Set where the data says that this message carries no loss.
    #[serde(skip)]
    pub no_loss: bool,
}

impl<'a> Message<'a> {
    /// A message of a role and its text, without tool calls.
    pub fn new(role: impl Into<Cow<'a, str>>, content: impl Into<Cow<'a, str>>) -> Self {
        Message { role: role.into(), content: content.into(), ..Default::default() }
    }

    /// Whether the role is `assistant`.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// The thoughts of an assistant message, under whichever name it holds them.
    pub(crate) fn thoughts(&self) -> Option<&str> {
        [&self.reasoning_content, &self.reasoning, &self.thinking]
            .into_iter()
            .find_map(|r| r.as_deref())
    }

    /// The fields for thoughts that are set.
    pub(crate) fn thoughts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        [&mut self.reasoning_content, &mut self.reasoning, &mut self.thinking].into_iter().flatten()
    }

    /// Whether it has tool calls, results of these or thoughts, which templates write around the
    /// content.
    pub(crate) fn has_extras(&self) -> bool {
        self.tool_calls.is_some() || self.thoughts().is_some() || self.tool_responses.is_some()
    }

    /// Whether it has a role and a content only.
    pub(crate) fn is_plain(&self) -> bool {
        !self.has_extras() && self.name.is_none() && self.tool_call_id.is_none()
    }
}

/// One training example.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Conversation<'a> {
    /// At least one assistant message, and at least one that is neither `system` nor `assistant`.
    pub messages: Vec<Message<'a>>,
    /// Tool declarations as a non-empty JSON list, in the form that templates expect.
    pub tools: Option<Value>,
    /// Variables for the template (the column `chat_template_kwargs`), if there are any.
    pub template_kwargs: Option<Map<String, Value>>,
}

/// A row after parsing. Category and licence are known for dropped rows too.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParsedRow<'a> {
    /// The `category` column, if it is text and not empty.
    pub category: Option<Cow<'a, str>>,
    /// The `license` or `licence` column, if it is text and not empty.
    pub licence: Option<Cow<'a, str>>,
    /// The conversation, or why the row is dropped.
    pub conversation: Result<Conversation<'a>, DropReason>,
}

impl<'a> ParsedRow<'a> {
    /// A row with the given messages and no tools; an empty category counts as none.
    pub(crate) fn from_messages(
        category: Option<Cow<'a, str>>,
        licence: Option<Cow<'a, str>>,
        messages: Vec<Message<'a>>,
    ) -> Self {
        ParsedRow {
            category: category.filter(|s| !s.is_empty()),
            licence,
            conversation: validate(&messages)
                .map(|()| Conversation { messages, ..Conversation::default() }),
        }
    }

    /// A row of which nothing could be read.
    pub(crate) fn dropped(reason: DropReason) -> Self {
        ParsedRow { category: None, licence: None, conversation: Err(reason) }
    }
}

/// Hash of a conversation, used for the held-out split and for finding duplicates: the first 16
/// bytes of a SHA-256 over roles, contents, tool calls and, if there are any, tool declarations.
pub(crate) fn fingerprint(c: &Conversation) -> u128 {
    use sha2::Digest;
    let mut h = sha2::Sha256::new();
    for m in &c.messages {
        let content = match m.thoughts() {
            Some(thoughts) => Cow::Owned(inline_thoughts(thoughts, &m.content, DEFAULT_MARKUP)),
            None => Cow::Borrowed(&*m.content),
        };
        for part in [m.role.as_bytes(), content.as_bytes()] {
            h.update((part.len() as u64).to_le_bytes());
            h.update(part);
        }
        if let Some(calls) = &m.tool_calls {
            h.update(calls.to_string());
        }
        if let Some(results) = &m.tool_responses {
            h.update([0xFE]);
            h.update(results.to_string());
        }
        if m.no_loss && m.is_assistant() {
            h.update([0xFF]);
        }
    }
    if let Some(tools) = &c.tools {
        // No role has this length, so tools are not mistaken for a message.
        h.update(u64::MAX.to_le_bytes());
        h.update(tools.to_string());
    }
    if let Some(kwargs) = &c.template_kwargs {
        h.update((u64::MAX - 1).to_le_bytes());
        h.update(Value::Object(kwargs.clone()).to_string());
    }
    let digest = h.finalize();
    digest.iter().take(16).fold(0, |n, b| (n << 8) | u128::from(*b))
}

/// The marks around thoughts that stand in the content of a message.
pub(crate) const DEFAULT_MARKUP: (&str, &str) = ("<think>", "</think>");

/// A content with thoughts in front of it, between the marks `markup`.
pub(crate) fn inline_thoughts(thoughts: &str, content: &str, markup: (&str, &str)) -> String {
    let (open, close) = markup;
    format!(
        "{open}\n{}\n{close}\n\n{}",
        thoughts.trim_matches('\n'),
        content.trim_start_matches('\n')
    )
}

/// The role in a chat template's terms for a role name of any dataset. None for an unknown name,
/// and for names such as `function_call` that say more than the role.
pub(crate) fn canonical_role(name: &str) -> Option<&'static str> {
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

/// Checks that a conversation has a prompt and a non-empty last assistant message.
pub(crate) fn validate(messages: &[Message]) -> Result<(), DropReason> {
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
    if messages[last].content.is_empty() && !messages[last].has_extras() {
        return Err(DropReason::EmptyResponse);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tools count, and the fingerprint of a conversation without tools stays as it always was,
    /// because the eval split depends on it.
    #[test]
    fn fingerprints() {
        let messages = vec![Message::new("user", "a"), Message::new("assistant", "b")];
        let with = |tools: Option<Value>| {
            fingerprint(&Conversation { messages: messages.clone(), tools, template_kwargs: None })
        };
        let tool = |name: &str| Some(serde_json::json!([{"name": name}]));
        assert_eq!(with(None), 0x4442_f719_8a19_8461_29a9_085a_9d00_9b9c);
        assert_ne!(with(None), with(tool("x")));
        assert_ne!(with(tool("x")), with(tool("y")));
        assert_eq!(with(tool("x")), with(tool("x")));
    }
}
