//! Decoding that verifies proposals: the source model's own answers, several tokens a pass.
//!
//! In: a prompt as token ids, for a model whose adapters act on mask tokens alone
//! (docs/objective.md, "Lossless"). Out: its passes, one after another.
//!
//! Let c be the decided tokens, of which all but the last have their keys and values in the cache.
//! A pass runs the last one and proposals for those behind it as clean tokens, which the source's
//! weights alone compute, each seeing those before it: they predict what the source itself would
//! say. Proposals count while they are that (`settle.rs`); the first that is not is replaced by the
//! source's own token, so that every pass decides at least one. In the same pass groups of mask
//! tokens propose what may follow: a group that stands behind j accepted proposals predicts the
//! tokens behind the one that the source will decide next. `plan.rs` chooses how many proposals are
//! verified and where masks stand. Whatever is proposed, the tokens are those of one token at a
//! time.

pub(crate) mod options;
mod plan;
pub(super) mod row;
mod settle;
#[cfg(test)]
mod tests;
