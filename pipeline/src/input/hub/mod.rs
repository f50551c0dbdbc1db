//! Datasets and models of a Hugging Face hub.
//!
//! In: `ORG/NAME` and a revision. Out: the repository's files, pinned to a commit, in the cache
//! that the Python client uses, too. Data files are downloaded in pieces while earlier ones are
//! already being processed; of a model only the files that will be loaded are downloaded.
//!
//! ```text
//! name ─── hf://ORG/NAME[@REV]     cache ─ layout of the cache folder, checks of file names
//! settings ─ from the environment  client ─ HTTP with retries
//! list ─── commit, files, sizes    model_files ─ which files of a model
//! fetch ── pieces, resume, checks  model ─ a folder or a repository → a local folder
//! ```
//!
//! The three endpoints of the hub are called directly, not through the hf-hub crate: its plain
//! downloads neither resume nor check the content, and it does not know HF_HUB_OFFLINE.

pub mod cache;
pub mod client;
pub mod fetch;
pub mod list;
pub mod model;
pub mod model_files;
pub mod name;
pub mod settings;
