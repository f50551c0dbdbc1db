//! Rows are read and processed on several threads; their order is kept.

pub mod batch;
pub mod executor;
pub mod row_processor;
