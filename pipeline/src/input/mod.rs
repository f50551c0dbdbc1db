//! Where rows come from: local files and folders, datasets of a hub; parquet, JSON lines and Arrow
//! as batches of unparsed rows.
//!
//! ```text
//! discover ── which files: the command line's, a hub dataset's, a recipe's
//!    ├── files ─── local files and folders, formats by name
//!    ├── hub ───── listing and download of repositories
//!    └── source ── one input file → json_lines, parquet_rows or arrow_rows → raw_rows
//! ```

pub mod arrow_rows;
pub mod discover;
pub mod files;
pub mod hub;
pub mod json_lines;
pub mod parquet_rows;
pub mod raw_rows;
pub mod source;
