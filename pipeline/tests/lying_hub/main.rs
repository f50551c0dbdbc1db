//! `--dataset` and `--tokenizer` against a hub that lies: every answer that cannot be right ends
//! the run with a message, soon; nothing is written outside of the cache and the output, the token
//! goes to the hub's own origin only, and no answer is read without an end.

mod answers;
mod bodies;
mod cases;
mod hf_hub;
mod listings;
mod models;
mod transport;
