//! Buckets: `gs://`, `s3://`, `az://`, and folders by `file://` (a mounted bucket, a test).
//!
//! In: an address, and credentials from the environment alone. Out: listings, files on the local
//! disk, uploads. What arrives or was sent is checked: its length always, its sha256 where it is
//! known, its MD5 where the bucket's tag is one.
//!
//! ```text
//! address ── gs://BUCKET/PATH          settings ─ patience, pauses, the cache folder
//! store ──── the operations            cloud ──── by object_store; disk ─ file://
//! fault ──── why a request failed      tag ────── what a tag (ETag) says of the content
//! folder ─── retries, checks: BucketFolder
//! download ─ pieces, resume            upload ─── whole objects or parts
//! model ──── a model's files → cache    dataset ── a packed dataset → cache, by its manifest
//! ```

pub(crate) mod address;
mod cache;
mod cloud;
pub(crate) mod dataset;
mod disk;
mod download;
pub(crate) mod fault;
pub(crate) mod folder;
pub(crate) mod model;
pub(crate) mod settings;
pub(crate) mod store;
mod tag;
mod upload;
