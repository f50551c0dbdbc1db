//! What the tests of all crates share: paths of test data, skips that show, a hub and a bucket on
//! the loopback interface, models and datasets of each family, running binaries.
//!
//! In: names. Out: paths, servers, folders, exit codes and output as text. Only tests and the demo
//! depend on this crate; it depends on dlm-datasets alone of the workspace.

pub mod binaries;
pub mod families;
pub mod fault_proxy;
pub mod hub;
pub mod lying_hub;
pub mod push_hub;
pub mod python;
pub mod s3;
pub mod xet_store;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use binaries::{Run, build, capture, command, on_the_cpu, run};

/// The root of this repository. Found from the package that cargo runs, since a target folder that
/// several clones share may hold this crate as compiled in another one.
pub fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = package.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
    root.unwrap_or(&package).to_path_buf()
}

/// `tests/fixtures` (described in its README.md): tiny models, reference tensors and decodes.
pub fn fixtures() -> PathBuf {
    repository().join("tests/fixtures")
}

/// A file of the sample data set, for example `tokenizer` or `train.parquet`.
pub fn sample(name: &str) -> PathBuf {
    repository().join("datasets/sample").join(name)
}

/// Third-party test data that the repository does not ship: published tokenizers, templates and
/// conversations. Looked for in the folder that `DLM_SHARED` names, else in `../shared` beside the
/// repository; prints `SKIP` and returns `None` where it is missing.
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("DLM_SHARED")
        .map_or_else(|| repository().join("../shared"), PathBuf::from);
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("{} is missing (DLM_SHARED names its folder)", path.display()));
    None
}

/// Unpacks the published tokenizers called `names` from `assets/tokenizers.tar.xz` of [`shared`]
/// into `directory` and returns the folder that holds a folder for each; prints `SKIP` and returns
/// `None` where the archive or a `tar` that reads xz is missing.
pub fn shared_tokenizers(directory: &Path, names: &[&str]) -> Option<PathBuf> {
    let archive = shared("assets/tokenizers.tar.xz")?;
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(&archive).arg("-C").arg(directory);
    tar.args(names.iter().map(|name| format!("tokenizers/{name}")));
    if !tar.status().is_ok_and(|s| s.success()) {
        skip(&format!("tar cannot unpack {}", archive.display()));
        return None;
    }
    Some(directory.join("tokenizers"))
}

/// Prints `SKIP` and the reason why something was not tested. It is written to the process's own
/// stderr, past the test harness, which hides what a passing test prints.
pub fn skip(reason: &str) {
    // Nothing can be reported when stderr is closed.
    let _ = std::io::stderr().write_all(format!("SKIP: {reason}\n").as_bytes());
}
