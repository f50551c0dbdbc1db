//! Files of models and runs: sources, loading, checkpoints, exports.

pub(crate) mod adapter;
pub(crate) mod bucket_run;
pub(crate) mod checkpoint;
pub(crate) mod checkpoint_store;
pub(crate) mod conversion_record;
pub(crate) mod description;
pub(crate) mod engine_formats;
pub(crate) mod export;
pub(crate) mod file_list;
pub(crate) mod json;
pub(crate) mod load_model;
pub(crate) mod safetensors_file;
pub(crate) mod source;
pub(crate) mod ternary_check;
pub(crate) mod tokenizer_ids;
pub(crate) mod uploads;
