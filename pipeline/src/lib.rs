//! Prepares datasets for block-diffusion training: conversations become packed Arrow rows.
//!
//! [`Prepare`] is the way in; [`verify`] checks a dataset and [`inspect()`] shows its rows.
//!
//! ```text
//! config ─ input ──── parse ──────── template ─ tokenize ─ label ───────────── pack
//!          raw rows   conversations  text       token ids  labels, cut, blocks  packed rows, manifest
//!          └──────────────── run: rows through these stages on N threads ─────┘
//! ```
//!
//! Rooms, from the top; imports point downwards only: cli, publish (to a hub), dataset (finished
//! datasets), prepare, pack, run, label, template, tokenize, parse, input, buckets, config,
//! progress, panics, runtime, manual, model_names, error.
//! docs/format.md describes the output.

mod buckets;
mod cli;
mod config;
mod dataset;
mod error;
mod input;
mod label;
mod manual;
mod model_names;
mod pack;
mod panics;
mod parse;
mod prepare;
mod progress;
mod publish;
mod run;
mod runtime;
mod template;
mod tokenize;

pub use cli::console::ConsoleProgress;
#[doc(hidden)]
pub use cli::main as cli_main;
pub use config::policies::{LostText, OverLong, SpecialText};
pub use config::run_options::{EngineChoice, RenderChoice};
pub use config::settings::Settings;
pub use config::trained_roles::TrainedRoles;
pub use dataset::export_hf::export_hf;
pub use dataset::inspect::{InspectOptions, inspect};
pub use dataset::merge::merge;
pub use dataset::row_view::MaskViews;
pub use dataset::verify::{VerifyReport, verify};
pub use dlm_datasets::manifest::{Alignment, Counts, LossOn, Manifest, Padding};
pub use error::{Error, Result};
pub use parse::conversation::Message;
pub use parse::request::parse_chat;
pub use prepare::builder::Prepare;
pub use prepare::estimate::{Estimate, SourceEstimate};
pub use prepare::pipeline::Prepared;
pub use progress::{DownloadCounters, ProcessingCounters, Progress, Silent};
pub use template::chat_context::ChatContext;
pub use template::chat_format::ChatFormat;

/// Buckets: `gs://`, `s3://`, `az://` and `file://`.
pub mod bucket {
    pub use crate::buckets::address::BucketAddress;
    pub use crate::buckets::dataset::fetch_dataset;
    pub use crate::buckets::folder::{BucketFolder, BucketObject};
}

/// Models and tokenizers: a local folder, or a repository of a Hugging Face hub that is downloaded
/// into the cache. Pushing a folder to a hub.
pub mod hub {
    pub use crate::input::hub::model::{ResolvedModel, resolve_model};
    pub use crate::input::hub::model_files::ModelPart;
    pub use crate::input::hub::name::HubName;
    pub use crate::model_names::{NAMED_TEMPLATES, TOKENIZER_FILES};
    pub use crate::publish::card::{Card, MARK, plain};
    pub use crate::publish::dataset::{licence_names, push_dataset, write_card};
    pub use crate::publish::push::{Push, Pushed, check_push, push};
}

/// Shell completions and manual pages; for the programs of this workspace.
#[doc(hidden)]
pub mod program_manual {
    pub use crate::manual::{CompletionsArgs, ManArgs, completions, write_man_pages, wrote};
}

#[cfg(test)]
mod tests;
