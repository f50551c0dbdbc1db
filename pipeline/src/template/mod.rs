//! Conversations become text, written by the model's own chat template, with the spans of the
//! assistant turns.

pub(crate) mod adapt;
pub(crate) mod alignment;
pub(crate) mod chat;
pub(crate) mod chat_context;
pub(crate) mod chat_format;
pub(crate) mod control;
pub(crate) mod forms;
pub(crate) mod jinja;
pub(crate) mod jinja_expression;
pub(crate) mod jinja_source;
pub(crate) mod placeholder;
pub(crate) mod presence;
pub(crate) mod python_arguments;
pub(crate) mod python_filters;
pub(crate) mod python_methods;
pub(crate) mod python_operators;
pub(crate) mod python_text;
pub(crate) mod rendered;
pub(crate) mod skeleton;
pub(crate) mod skeleton_cache;
pub(crate) mod spans;
pub(crate) mod turn_edges;
pub(crate) mod verbatim;
