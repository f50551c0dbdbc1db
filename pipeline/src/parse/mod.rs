//! Raw rows to conversations.

pub mod conversation;
pub mod fast_columns;
pub mod fast_json;
pub mod table;
