//! Exported folders on a Hugging Face hub: the model card and the push.
//!
//! In: an exported folder, the run and the dataset it comes from. Out: README.md with a YAML
//! header, and a commit on the hub (by `dlm_prep::hub`).
//!
//! ```text
//! facts ── what the files of the folder, the run and the dataset say
//! engines ─ which programs load such a folder     card ── README.md of it
//! push ─── which files go to the hub
//! ```

pub(crate) mod card;
pub(crate) mod engines;
pub(crate) mod facts;
pub(crate) mod push;
