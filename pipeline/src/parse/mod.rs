//! Raw rows become conversations.

pub(crate) mod conversation;
pub(crate) mod drop_reason;
pub(crate) mod fast_columns;
pub(crate) mod fast_json;
pub(crate) mod rows;
pub(crate) mod shapes;
pub(crate) mod table;
