//! Decoding: many tokens per forward pass in diffusion blocks, or one at a time as the
//! autoregressive baseline.
//!
//! In: prompts as token ids. Out: [`DecodedSequence`]s with the forward passes they took.
//! `folder.rs` reads a model folder, `prompt.rs` turns text into ids, `cached.rs` is the forward
//! pass behind a cache of keys and values, `cpu/` the same without Burn, `engine.rs` runs one pass and predicts tokens, `row.rs`
//! is a prompt that is being completed, `block.rs` (Fast-dLLM v2's `batch_sample`,
//! arXiv:2509.26328) and `ar.rs` (causal decoding) are its two kinds, `continuous.rs` runs rows of
//! both together. Rows are independent: each gets the tokens it would get alone.

mod ar;
mod block;
pub(crate) mod cached;
pub(crate) mod completion;
pub(crate) mod continuous;
pub(crate) mod cost;
mod cpu;
mod engine;
pub(crate) mod folder;
pub(crate) mod generate_options;
mod list;
pub(crate) mod prompt;
mod row;

pub(crate) use block::BlockOptions;
pub(crate) use continuous::{Event, Request, RowMode};
pub(crate) use engine::Engine;
pub(crate) use list::{Told, decode_list};

/// Forward passes of one row by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Passes {
    /// Over whole blocks of the prompt; in autoregressive mode over all of it.
    pub prefill: usize,
    /// Over a whole block that is being decoded; in autoregressive mode over one token.
    pub block: usize,
    /// Over a sub-block, with keys and values of the rest of its block from an earlier pass.
    pub small: usize,
    /// Over a finished block, whose keys and values join the cache.
    pub commit: usize,
}

impl Passes {
    /// Passes of all kinds.
    pub fn total(&self) -> usize {
        self.prefill + self.block + self.small + self.commit
    }
}

/// How a generated token was decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Decided {
    /// Forward pass of the prompt that decided it, from 1 on, passes of all kinds counted.
    pub pass: usize,
    /// Its probability in that pass, 0 to 1.
    pub probability: f32,
}

/// A prompt with its completion, as token ids.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecodedSequence {
    /// Prompt and completion; cut after the first stop token of the completion.
    pub ids: Vec<i64>,
    /// Number of prompt tokens in `ids`.
    pub prompt: usize,
    /// For each token of the completion, how it was decided.
    pub decided: Vec<Decided>,
    /// Whether a stop token ended the completion.
    pub stopped: bool,
    /// Forward passes that the row took part in.
    pub passes: Passes,
}

impl DecodedSequence {
    /// Token ids of the completion.
    pub(crate) fn generated(&self) -> &[i64] {
        self.ids.get(self.prompt..).unwrap_or_default()
    }

    /// Cuts after the first of `stop_ids` in the completion.
    fn cut(mut self, stop_ids: &[i64]) -> Self {
        if let Some(at) = self.generated().iter().position(|id| stop_ids.contains(id)) {
            self.ids.truncate(self.prompt + at + 1);
            self.decided.truncate(at + 1);
            self.stopped = true;
        }
        self
    }
}
