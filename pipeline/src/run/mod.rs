//! Rows through the stages on several threads, order kept.

pub mod batch;
pub mod executor;
pub mod progress;
pub mod row_processor;
