//! Reading the source text of the workspace, for the tests of its structure.
//!
//! In: the repository's folder. Out: each library crate as a tree of modules with their items
//! ([`tree`]), the imports between its files ([`imports`]), the items that other crates can name
//! ([`public_api`]), and the comments and texts that the tests look through ([`text`]). Test code
//! (`#[cfg(test)]`) is left away everywhere. Files are parsed with syn; nothing is compiled, so
//! what a macro of the crate generates is not seen.

pub(crate) mod imports;
pub(crate) mod public_api;
pub(crate) mod text;
pub(crate) mod tree;

use std::path::PathBuf;

/// The root of this repository. Found from the package that cargo runs, since a target folder that
/// several clones share may hold this crate as compiled in another one.
pub(crate) fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = package.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
    root.unwrap_or(&package).to_path_buf()
}
