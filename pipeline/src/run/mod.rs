//! Rows are read and processed on several threads; their order is kept.

pub(crate) mod batch;
pub(crate) mod executor;
pub(crate) mod row_processor;
