//! Raw rows become conversations.

pub mod conversation;
pub mod drop_reason;
pub mod fast_columns;
pub mod fast_json;
pub mod rows;
pub mod shapes;
pub mod table;
