//! Conversations become text, written by the model's own chat template, with the spans of the
//! assistant turns.

pub mod alignment;
pub mod chat;
pub mod chat_format;
pub mod control;
pub mod jinja;
pub mod jinja_source;
pub mod placeholder;
pub mod python_text;
pub mod rendered;
pub mod skeleton;
pub mod skeleton_cache;
pub mod spans;
pub mod verbatim;
