//! Decoding: many tokens per forward pass in diffusion blocks, or one at a time as the
//! autoregressive baseline.
//!
//! In: prompts as token ids. Out: [`DecodedSequence`]s with the forward passes they took.
//! `folder.rs` reads a model folder, `prompt.rs` turns text into ids, `cached.rs` is the forward
//! pass behind a cache of keys and values, `cpu/` the same without Burn, `engine.rs` runs one pass
//! and predicts tokens, `row.rs` is a prompt that is being completed, `block.rs` (Fast-dLLM v2's
//! `batch_sample`, arXiv:2509.26328; settings in `block_options.rs`), `multi_block.rs` (several
//! blocks at a time), `verify/` (proposals that the source verifies; `placed.rs` says where their
//! tokens stand) and `ar.rs` (causal decoding) are its kinds, `continuous.rs` runs rows of all of
//! them together, `list.rs` a list of requests; `sampling.rs` draws tokens, `text_stream.rs` is
//! the text as it becomes final, `cost.rs` measures passes. Rows are independent: each gets the
//! tokens it would get alone.

mod ar;
mod block;
mod block_options;
mod branches;
pub(crate) mod cached;
mod column_major;
pub(crate) mod completion;
pub(crate) mod continuous;
pub(crate) mod cost;
mod cpu;
mod distribution;
mod engine;
pub(crate) mod folder;
mod gate;
pub(crate) mod generate_options;
mod list;
pub(crate) mod multi_block;
pub(crate) mod placed;
pub(crate) mod prompt;
mod row;
pub(crate) mod sampling;
pub(crate) mod text_stream;
pub(crate) mod verify;

pub(crate) use block_options::BlockOptions;
pub(crate) use continuous::{Event, Request, RowMode};
pub(crate) use engine::Engine;
pub(crate) use list::{Told, decode_list};
pub(crate) use sampling::Sampling;
pub(crate) use text_stream::{StopStrings, TextStream};
pub use verify::options::Proposals;
pub(crate) use verify::options::VerifyOptions;

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

/// Why a completion ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token was generated; it is the last token.
    StopToken,
    /// A stop string is complete in the text; the text ends before it.
    StopString,
    /// The limit of new tokens.
    #[default]
    Length,
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
    /// Why the completion ended.
    pub finish_reason: FinishReason,
    /// Bytes of the completion's text before the stop string that ended it.
    pub text_end: Option<usize>,
    /// Forward passes that the row took part in.
    pub passes: Passes,
    /// Of a row whose passes verify proposals.
    pub proposals: Option<Proposals>,
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
            self.finish_reason = FinishReason::StopToken;
        }
        self
    }

    /// Cuts after the first `tokens` of the completion, the last of which completes a stop string
    /// that begins at byte `text_end` of the text.
    fn cut_at_string(mut self, tokens: usize, text_end: usize) -> Self {
        self.ids.truncate(self.prompt + tokens);
        self.decided.truncate(tokens);
        self.finish_reason = FinishReason::StopString;
        self.text_end = Some(text_end);
        self
    }
}
