//! Datasets and models of a Hugging Face hub.
//!
//! In: `ORG/NAME` and a revision. Out: the repository's files, pinned to a commit, in the cache
//! that the Python client uses, too. Data files are downloaded in pieces while earlier ones are
//! already being processed; of a model only the files that will be loaded are downloaded.
//!
//! ```text
//! name ─── hf://ORG/NAME[@REV]     cache ─ layout of the cache folder, checks of file names
//! settings ─ from the environment  client ─ HTTP with retries
//! causes ─ of failed requests
//! address ─ origins, redirects     tree ── commit, files, sizes, each entry checked
//! list ─── which files of a dataset  model_files ─ which files of a model
//! fetch ── pieces, resume, checks  model ─ a folder or a repository → a local folder
//! ```
//!
//! The three endpoints of the hub are called directly, not through the hf-hub crate: its plain
//! downloads neither resume nor check the content, and it does not know HF_HUB_OFFLINE.

pub(crate) mod address;
pub(crate) mod cache;
pub(crate) mod causes;
pub(crate) mod client;
pub(crate) mod fetch;
pub(crate) mod list;
pub(crate) mod model;
pub(crate) mod model_files;
pub(crate) mod name;
pub(crate) mod settings;
pub(crate) mod tree;
