//! A conversation that a program wants to be continued.
//!
//! In: messages and tool declarations in any form that training data may have (`message.rs`,
//! `tools.rs`): content as text or as a list of text parts, tools as a list or as JSON text. Out:
//! what a chat template reads.

use crate::error::{Error, Result};
use crate::parse::conversation::Message;
use crate::parse::drop_reason::DropReason;
use crate::parse::message::parse_message;
use crate::parse::tools::take_tools;
use serde_json::{Map, Value};

/// The messages, and the tools as a JSON list if there are any.
///
/// # Errors
///
/// [`Error::Usage`] for a message or a tool that cannot be read, with its number, counted from 1.
pub fn parse_chat(
    messages: Vec<Value>,
    tools: Value,
) -> Result<(Vec<Message<'static>>, Option<Value>)> {
    let wrong = |place: String, reason| Error::Usage(format!("{place}: {}", explain(reason)));
    let read = |(i, message)| {
        parse_message(message).map_err(|reason| wrong(format!("message {}", i + 1), reason))
    };
    let messages = messages.into_iter().enumerate().map(read).collect::<Result<_>>()?;
    let mut row = Map::new();
    row.insert("tools".into(), tools);
    let tools = take_tools(&mut row).map_err(|reason| wrong("tools".into(), reason))?;
    Ok((messages, tools))
}

/// What was expected.
fn explain(reason: DropReason) -> String {
    match reason {
        DropReason::UnknownRole => {
            "no known role; expected system, developer, user, assistant, tool, function or ipython"
                .into()
        }
        DropReason::NullContent => "no content; expected text or a list of text parts".into(),
        DropReason::NonTextContent => {
            "content that is not text; expected text or a list of parts {\"type\": \"text\", \"text\": \"...\"}".into()
        }
        DropReason::BadToolCalls => {
            "tool calls that cannot be read; expected an assistant's list of {\"name\": \"...\", \"arguments\": {...}}".into()
        }
        DropReason::BadTools => {
            "declarations that cannot be read; expected a list of {\"name\": \"...\", ...} or {\"type\": \"function\", \"function\": {...}}".into()
        }
        DropReason::UnknownShape => {
            "not a message; expected {\"role\": \"...\", \"content\": \"...\"}".into()
        }
        other => format!("cannot be used ({})", other.name()),
    }
}
