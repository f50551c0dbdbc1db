//! Where rows come from: local files and folders, datasets of a hub; parquet, JSON lines and Arrow
//! as batches of unparsed rows.
//!
//! ```text
//! discover ── which files: the command line's, a hub dataset's, a recipe's
//!    ├── files ─── local files and folders, formats by name
//!    ├── bucket_files  files in buckets, fetched ahead
//!    ├── hub ───── listing and download of repositories
//!    ├── selection ─ config and split: by card (glob) or split_names; what is not_read
//!    └── source ── one input file → json_lines, parquet_rows or arrow_rows → raw_rows
//! ```

pub(crate) mod arrow_check;
pub(crate) mod arrow_rows;
pub(crate) mod bucket_files;
pub(crate) mod card;
pub(crate) mod decoder_guard;
pub(crate) mod discover;
pub(crate) mod files;
pub(crate) mod glob;
pub(crate) mod hub;
pub(crate) mod json_form;
pub(crate) mod json_lines;
pub(crate) mod not_read;
pub(crate) mod parquet_delta;
pub(crate) mod parquet_pages;
pub(crate) mod parquet_rows;
pub(crate) mod parquet_thrift;
pub(crate) mod raw_rows;
pub(crate) mod selection;
pub(crate) mod source;
pub(crate) mod split_names;
pub(crate) mod table_size;
