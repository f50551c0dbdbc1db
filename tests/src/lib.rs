//! Whole-program tests: what they share, and the sample data set's generator.

use std::path::{Path, PathBuf};

pub mod sample;

/// The root of this repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}
