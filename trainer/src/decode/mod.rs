//! Decoding: many tokens a forward pass in diffusion blocks, or one at a time as the autoregressive
//! baseline.
//!
//! In: prompts as token ids. Out: [`Completion`]s with the forward passes they took. `folder.rs`
//! reads a model folder, `prompt.rs` makes ids of text, `engine.rs` runs one pass and judges
//! positions, `block.rs` is Fast-dLLM v2's `batch_sample` (arXiv:2509.26328), `ar.rs` is greedy
//! causal decoding in the same engine. Rows of a batch are independent: each gets the tokens it
//! would get alone.

mod ar;
mod block;
pub mod cached;
mod engine;
pub mod folder;
pub mod prompt;

pub use ar::ArOptions;
pub use block::BlockOptions;
pub use engine::Engine;

/// Forward passes of one row by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Passes {
    /// Over the prompt.
    pub prefill: usize,
    /// Over a whole block; in `ar` mode over one token.
    pub block: usize,
    /// Over a sub-block, with the rest of its block from the sub-block cache.
    pub small: usize,
    /// Over a finished block, whose keys and values join the cache.
    pub commit: usize,
}

impl Passes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.prefill + self.block + self.small + self.commit
    }
}

/// What became of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Prompt and completion; cut after the first stop token.
    pub ids: Vec<i64>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Whether a stop token ended it.
    pub stopped: bool,
    /// Forward passes the row took part in.
    pub passes: Passes,
}

impl Completion {
    /// What was generated.
    pub fn generated(&self) -> &[i64] {
        self.ids.get(self.prompt..).unwrap_or_default()
    }

    /// Cuts after the first of `stop` behind the prompt.
    fn cut(mut self, stop: &[i64]) -> Self {
        if let Some(at) = self.generated().iter().position(|id| stop.contains(id)) {
            self.ids.truncate(self.prompt + at + 1);
            self.stopped = true;
        }
        self
    }
}
