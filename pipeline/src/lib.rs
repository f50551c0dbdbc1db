//! Conversations to packed Arrow rows: the stages of dlm-prep, one file each, in the order of the data flow.
//!
//! ```text
//! source ─ conversation ─ template ─ spans ─ tokenize ─ supervise ─ truncate ─ block ─ pack ─ shard
//! files    row→messages   Jinja      who     text→ids   labels      long rows  grid    rows   Arrow + manifest
//!          (python: its environment) (control: token strings in text)        workers: threads around it all
//! ```

pub mod block;
pub mod control;
pub mod conversation;
pub mod error;
pub mod pack;
pub mod python;
pub mod spans;
pub mod supervise;
pub mod template;
pub mod tokenize;
pub mod truncate;

pub use error::{Error, Result};
