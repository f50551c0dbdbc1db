//! Where rows come from: local files, folders, datasets on a hub; parquet, JSON lines and Arrow as
//! batches of raw rows.

pub mod discover;
pub mod hub;
pub mod json_lines;
pub mod source;
