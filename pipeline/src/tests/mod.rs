//! Tests across several rooms of this crate.

mod calls;
mod chat_format;
mod damaged_files;
mod damaged_parquet;
mod frame;
mod fuzz;
mod goldens;
mod in_context;
mod interrupted_turns;
mod loss_options;
mod marked_turns;
mod parity;
mod probes;
