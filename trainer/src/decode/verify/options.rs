//! Settings of decoding that verifies, and counts of what it proposed.

use crate::error::{Error, Result};

/// Settings of decoding that verifies.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct VerifyOptions {
    /// Tokens of a pass beside the last decided one: proposals and masks.
    pub propose: usize,
    /// Masks of a group: how far the model was trained to propose.
    pub most_masks: usize,
    /// The mask token, which is not proposed.
    pub mask_id: i64,
}

impl VerifyOptions {
    /// Refuses options that cannot be used.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub(in crate::decode) fn check(&self) -> Result<()> {
        const MOST: usize = 1 << 10;
        match self.propose {
            1..=MOST => Ok(()),
            n => Err(Error::Usage(format!(
                "{n} tokens beside the last one in a pass (--propose): expected 1 to {MOST}"
            ))),
        }
    }
}

/// What a further token of a pass costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TokenCost {
    /// As a share of a pass over one token.
    pub share: f64,
    /// Tokens that cost no more than one more than a multiple of this: those computed together.
    pub together: usize,
}

/// Proposals of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Proposals {
    /// Those that a pass verified.
    pub verified: usize,
    /// Those of them that were the source's own tokens.
    pub accepted: usize,
}
