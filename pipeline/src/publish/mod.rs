//! Pushing a folder to a Hugging Face hub, and the card of a dataset.
//!
//! In: a dataset's folder (or a model's, from dlm-train) and `ORG/NAME`. Out: one commit.
//!
//! ```text
//! dataset ─ which files of a dataset, its card     git_id ─ how git names a small file
//! push ──── listing, what is missing, checks       contents ─ local files: sizes and hashes
//! commit ── hf-hub: repository, upload, commit     card ── Markdown and YAML, safely quoted
//! ```

pub(crate) mod card;
pub(crate) mod commit;
pub(crate) mod contents;
pub(crate) mod dataset;
pub(crate) mod git_id;
pub(crate) mod push;
