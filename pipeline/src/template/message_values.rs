//! Messages as the values that a template reads.
//!
//! In: messages. Out: a list of maps. Most templates read contents as texts, some as lists of
//! parts.

use crate::parse::conversation::Message;
use minijinja::value::{Serde, Value};
use serde_json::json;

/// Messages as a template reads them; with `parts`, each content is a list of one part.
pub(crate) fn messages_value(messages: &[Message], parts: bool) -> Value {
    if !parts {
        return Value::from(Serde(messages));
    }
    let with_parts = |m: &Message| {
        let fields = Value::from(Serde(m));
        let content = match &*m.content {
            "" => json!([]),
            text => json!([{"type": "text", "text": text}]),
        };
        let names = fields.try_iter().into_iter().flatten();
        Value::from_pairs(names.map(|name| {
            let value = match name.as_str() {
                Some("content") => Value::from(Serde(&content)),
                _ => fields.get_item(&name).unwrap_or_default(),
            };
            (name, value)
        }))
    };
    messages.iter().map(with_parts).collect()
}
