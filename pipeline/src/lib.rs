//! Conversations to packed Arrow rows: the stages of dlm-prep, one file each, in the order of the data flow.
//!
//! ```text
//! source ─ conversation ─ template ─ spans ─ supervise ─ truncate ─ block ─ pack ─ shard
//! files    row→messages   Jinja      who     ids, labels long rows  grid    rows   Arrow + manifest
//! (lines)  (table)        (python)   (skeleton) (tokenize,
//!          (direct,       (linear)   (control)   tokenizer_file,      settings → plan → estimate; worker: a batch; workers: threads
//!           direct_json)                          canonical, frame)
//! ```

pub mod args;
pub mod batch;
pub mod block;
pub mod canonical;
pub mod commands;
pub mod control;
pub mod conversation;
pub mod direct;
pub mod direct_json;
pub mod error;
pub mod estimate;
pub mod frame;
pub mod html;
pub mod hub;
pub mod inputs;
pub mod json_text;
pub mod linear;
pub mod lines;
pub mod mixture;
pub mod pack;
pub mod plan;
pub mod progress;
pub mod python;
pub mod recipe;
pub mod settings;
pub mod shard;
pub mod signals;
pub mod skeleton;
pub mod source;
pub mod spans;
pub mod supervise;
pub mod table;
pub mod template;
pub mod tokenize;
pub mod tokenizer_file;
pub mod truncate;
pub mod worker;
pub mod workers;

pub use error::{Error, Result};
