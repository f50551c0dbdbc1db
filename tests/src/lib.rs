//! Whole-program tests: finding and running the real binaries, and the sample data set's generator.
//!
//! In: a binary's name and arguments. Out: exit code, stdout and stderr as text. The binaries are
//! built once, with the profile and target folder of the running program.

pub mod binaries;
pub mod python;
pub mod sample;
pub mod samples;

use std::io::Write;
use std::path::{Path, PathBuf};

pub use binaries::{Run, build, command, profile_dir, run};

/// The root of this repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// A file or folder of the project's shared folder (`DLM_SHARED`, else `../shared` beside the
/// repository); where it is not there, says `SKIP` and gives nothing.
pub fn shared(what: &str) -> Option<PathBuf> {
    let root = std::env::var_os("DLM_SHARED")
        .map_or_else(|| repository().join("../shared"), PathBuf::from);
    let path = root.join(what);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("{} is not here", path.display()));
    None
}

/// Says loudly that something was not tested. Tests that end with it have shown nothing. Written
/// past the test harness, which keeps what a passing test prints to itself.
pub fn skip(why: &str) {
    // nobody to tell when stderr is closed
    let _ = std::io::stderr().write_all(format!("SKIP: {why}\n").as_bytes());
}
