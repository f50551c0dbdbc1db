//! Preparing a dataset from beginning to end.
//!
//! ```text
//! builder ── Prepare: what the caller asks for → run or estimate
//!    ├── plan ────── loads inputs, tokenizer, template · engine_sample · tokenizer_folder
//!    ├── pipeline ── plan → run → pack → dataset
//!    └── estimate ── plan → sample → Estimate
//! ```

pub mod builder;
pub mod engine_sample;
pub mod estimate;
pub mod peak_memory;
pub mod pipeline;
pub mod plan;
pub mod sample;
pub mod tokenizer_folder;
