//! Reading the source text of the workspace, for the tests of its structure.
//!
//! In: the repository's folder. Out: each library crate as a tree of modules with their items
//! ([`tree`]), the imports between its files ([`imports`]), the items that other crates can name
//! ([`public_api`]), and the comments and texts that the tests look through ([`text`]). Test code
//! (`#[cfg(test)]`) is left away everywhere. Files are parsed with syn; nothing is compiled, so
//! what a macro of the crate generates is not seen.

pub mod imports;
pub mod public_api;
pub mod text;
pub mod tree;

use std::path::{Path, PathBuf};

/// The root of this repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or_else(PathBuf::new, Path::to_path_buf)
}
