//! Conversations to packed Arrow rows: the stages of dlm-prep, one file each, in the order of the
//! data flow.
//!
//! ```text
//! source ─ conversation ─ template ─ spans ─ supervise ─ truncate ─ block ─ pack ─ shard
//! files    row→messages   Jinja      who     ids, labels long rows  grid    rows   Arrow + manifest
//! (lines)  (table)        (python)   (skeleton) (tokenize,
//!          (direct,       (linear)   (control)   tokenizer_file,      settings → plan → estimate; worker: a batch; workers: threads
//!           direct_json)                          canonical, frame)
//! ```

pub mod cli;
pub mod config;
pub mod error;
pub mod input;
pub mod label;
pub mod pack;
pub mod parse;
pub mod prepare;
pub mod run;
pub mod template;
pub mod tokenize;

pub use error::{Error, Result};
pub use parse::conversation::Message;
pub use template::chat_format::ChatFormat;

#[cfg(test)]
mod tests;
