//! Conversations to text, as the model's own chat template writes it, with the assistant's spans.

pub mod chat;
pub mod control;
pub mod jinja;
pub mod skeleton;
pub mod spans;
pub mod verbatim;
