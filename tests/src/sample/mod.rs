//! The sample data set: small records and questions about them, written by a seeded program.
//!
//! In: a seed. Out: the files of `datasets/sample`, always the same bytes. `make-sample` writes
//! them; a test compares the shipped files with a fresh run. Flow: [`words`] → [`text`]
//! (conversations) → [`tokenizer`] (trained on them) → [`files`].

pub mod files;
pub mod plain;
pub mod rng;
pub mod text;
pub mod tokenizer;
pub mod words;

/// Seed of the shipped files.
pub const SEED: u64 = 42;
/// Training conversations.
pub const TRAIN_ROWS: usize = 16_000;
/// Held-out prompts.
pub const HELD_OUT_ROWS: usize = 128;
/// `vocab_size` of the model config: a multiple of 64 with room for the mask token.
pub const MODEL_VOCAB: usize = 832;
