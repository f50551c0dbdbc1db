//! A Python with the packages that a check needs.
//!
//! In: package names. Out: the interpreter (`DLM_PYTHON`, else `python3`), or a loud skip.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An interpreter that imports all of `packages`; says `SKIP` and gives nothing where there is
/// none.
pub fn with(packages: &[&str]) -> Option<PathBuf> {
    let python =
        std::env::var_os("DLM_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let code = format!("import {}", packages.join(", "));
    let status = Command::new(&python)
        .args(["-c", &code])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(s) if s.success() => Some(python),
        _ => {
            crate::skip(&format!("{} cannot import {}", python.display(), packages.join(", ")));
            None
        }
    }
}
