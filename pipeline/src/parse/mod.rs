//! Raw rows become conversations.

pub(crate) mod conversation;
pub(crate) mod drop_reason;
pub(crate) mod fast_columns;
pub(crate) mod fast_json;
pub(crate) mod json_value;
pub(crate) mod loss_flags;
pub(crate) mod message;
pub(crate) mod request;
pub(crate) mod row_limits;
pub(crate) mod rows;
pub(crate) mod shapes;
pub(crate) mod table;
pub(crate) mod tool_calls;
pub(crate) mod tools;
