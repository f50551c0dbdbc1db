//! Datasets and models of a Hugging Face hub.
//!
//! In: `ORG/NAME` and a revision. Out: the repository's files, pinned to a commit, in the cache
//! that the Python client uses, too. Data files are downloaded in pieces while earlier ones are
//! already being processed; of a model only the files that will be loaded are downloaded.
//!
//! ```text
//! name ─── hf://ORG/NAME[@REV]     cache ─ layout of the cache folder, checks of file names
//! settings ─ from the environment  client ─ token, redirects, retries
//! transport ─ one request          address ─ origins, the next page
//! tree ── commit, files, sizes, each entry checked
//! list ─── which files of a dataset  model_files ─ which files of a model
//! fetch ── pieces, resume, checks  model ─ a folder or a repository → a local folder
//! ```
//!
//! Reading asks three endpoints of the hub by reqwest, hf-hub's own HTTP client; writing
//! (`publish`) goes through hf-hub. Its reading side is not used because it gives up what is
//! checked here: its typed listing has no sha256 (it looks for `lfs.sha256`, hubs send `lfs.oid`),
//! follows a Link header to any host with the token and ends the listing at one it cannot read; its
//! streams do not tell a part from the whole file, change to xet servers where a header says so,
//! and no answer has an end.

pub(crate) mod address;
pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod fetch;
pub(crate) mod list;
pub(crate) mod model;
pub(crate) mod model_files;
pub(crate) mod name;
pub(crate) mod settings;
pub(crate) mod transport;
pub(crate) mod tree;
