//! Preparing a dataset from beginning to end.
//!
//! ```text
//! builder ── Prepare: what the caller asks for → run or estimate
//!    ├── plan ────── loads inputs, tokenizer, template · engine_sample · mask_id · tokenizer_folder
//!    ├── pipeline ── plan → run → pack → dataset
//!    ├── bucket_out  a dataset that is written into a bucket
//!    └── estimate ── plan → sample → Estimate
//! ```

pub(crate) mod bucket_out;
pub(crate) mod builder;
pub(crate) mod engine_sample;
pub(crate) mod estimate;
pub(crate) mod mask_id;
pub(crate) mod peak_memory;
pub(crate) mod pipeline;
pub(crate) mod plan;
pub(crate) mod sample;
pub(crate) mod tokenizer_folder;
