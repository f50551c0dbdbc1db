//! What a program gives a chat template besides the messages.

use serde_json::{Map, Value};

/// Tools and variables of a chat template, as in transformers' `apply_chat_template`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatContext {
    /// Tool declarations as a JSON list; None where there are none.
    pub tools: Option<Value>,
    /// Further variables that the template may read, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}
