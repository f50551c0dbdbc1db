//! Settings of block decoding, and what follows from them: blocks to decode, positions, limits.

use crate::error::{Error, Result};

/// Most tokens of the blocks in flight: a pass attends from each of them to each.
const MOST_FLIGHT: usize = 1 << 16;

/// Settings of block decoding.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct BlockOptions {
    /// Tokens per block; should be what the model was trained with.
    pub block_size: usize,
    /// Tokens per sub-block; divides `block_size`.
    pub sub_block_size: usize,
    /// Probability above which a token is fixed.
    pub threshold: f64,
    /// Run only the sub-block once keys and values of the whole block are known from an earlier
    /// pass: faster in large batches, approximate.
    pub sub_block_cache: bool,
    /// Run the first pass over a block that the prompt begins together with the prompt's last
    /// whole blocks; the same tokens.
    pub fuse_prefill: bool,
    /// Run the first pass over a block together with the commit of the block before it where its
    /// first token was foreseen; the same tokens.
    pub fuse_commit: bool,
    /// Most blocks that are decoded at a time; more than one is approximate.
    pub blocks_in_flight: usize,
    /// The logits at position j - 1 predict token j; without it those at position j, as the model
    /// was trained.
    #[serde(skip_serializing_if = "is_true")]
    pub token_shift: bool,
}

/// Answers to tasks are kept under their serialised options: those from before this option stay.
fn is_true(value: &bool) -> bool {
    *value
}

impl BlockOptions {
    /// Decoding as the published code does it, pass by pass.
    #[cfg(test)]
    pub(crate) fn published(block_size: usize, sub_block_size: usize, threshold: f64) -> Self {
        BlockOptions {
            block_size,
            sub_block_size,
            threshold,
            sub_block_cache: false,
            fuse_prefill: false,
            fuse_commit: false,
            blocks_in_flight: 1,
            token_shift: true,
        }
    }

    /// Positions between the logits that predict a token and the token.
    pub(super) fn shift(&self) -> usize {
        usize::from(self.token_shift)
    }

    /// Blocks to decode, the one that the prompt begins among them. With the token shift
    /// `max_new_tokens` is counted in whole blocks as in the published code; without it, from the
    /// end of the prompt.
    pub(super) fn blocks(&self, prompt: usize, max_new_tokens: usize) -> usize {
        let size = self.block_size.max(1);
        match self.token_shift || max_new_tokens == 0 {
            true => max_new_tokens.div_ceil(size),
            false => (prompt % size).saturating_add(max_new_tokens).div_ceil(size),
        }
    }

    /// Positions that a row with this prompt may come to need.
    pub(super) fn positions(&self, prompt: usize, max_new_tokens: usize) -> usize {
        let size = self.block_size.max(1);
        let blocks = self.blocks(prompt, max_new_tokens);
        (prompt / size * size).saturating_add(blocks.saturating_mul(size))
    }

    /// As many of `tokens` tokens as fill whole blocks.
    pub(super) fn in_whole_blocks(&self, tokens: usize) -> usize {
        tokens / self.block_size * self.block_size
    }

    /// Most tokens of a completion: without bound where whole blocks are counted.
    pub(super) fn limit(&self, max_new_tokens: usize) -> usize {
        match self.token_shift && max_new_tokens.is_multiple_of(self.block_size) {
            true => usize::MAX,
            false => max_new_tokens,
        }
    }

    /// Refuses options that several blocks in flight do not have.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub(super) fn check_flight(&self) -> Result<()> {
        let most = MOST_FLIGHT / self.block_size.max(1);
        let wrong = |what: String| Err(Error::Usage(what));
        match self.blocks_in_flight {
            0 => wrong("0 blocks in flight (--blocks-in-flight): expected 1 or more".into()),
            n if n > most.max(1) => wrong(format!(
                "{n} blocks of {} tokens in flight (--blocks-in-flight): expected at most {}",
                self.block_size,
                most.max(1)
            )),
            n if n > 1 && self.sub_block_cache => wrong(format!(
                "--sub-block-cache has no meaning with {n} blocks in flight: every pass runs all of them; leave one of the two out"
            )),
            n if n > 1 && self.fuse_commit => wrong(format!(
                "--fuse-commit has no meaning with {n} blocks in flight, whose commits run together with other blocks anyway; leave one of the two out"
            )),
            _ => Ok(()),
        }
    }
}
