//! Training: from a dataset and a source model to an exported folder.
//!
//! `prepare_model` loads the source and fits it to the dataset, `data` reads batches ahead (with
//! `checked_dataset`),
//! `trainer` sets a run up, `resume` continues it from a checkpoint, `run` is the loop, `step` one
//! optimizer step (with `micro_batch`, `workers`, `out_of_memory` and
//! `spike_guard`), `evaluate` the held-out
//! loss with `acceptance` and `simulated_decode`, `flops` the work counted for MFU, `export_run`
//! the exported folder, `remote` sends checkpoints and export to a bucket.

pub(crate) mod acceptance;
pub(crate) mod checked_dataset;
pub(crate) mod data;
pub(crate) mod evaluate;
pub(crate) mod export_run;
pub(crate) mod flops;
mod identity;
pub(crate) mod micro_batch;
mod out_of_memory;
pub(crate) mod output_folder;
pub(crate) mod prepare_model;
mod remote;
mod resume;
pub(crate) mod run;
pub(crate) mod simulated_decode;
mod spike_guard;
mod step;
pub(crate) mod stop_signal;
pub(crate) mod trainer;
mod turn_opening;
mod workers;
