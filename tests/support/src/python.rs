//! A Python interpreter with the packages that a check needs.
//!
//! In: package names. Out: the interpreter (`DLM_PYTHON`, else `python3`), or a skip with a
//! message.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An interpreter that can import all of `packages`; prints `SKIP` and returns `None` where there
/// is none.
pub fn with(packages: &[&str]) -> Option<PathBuf> {
    named("DLM_PYTHON", packages)
}

/// The same for the interpreter that the variable `named` names, of which a check may need several.
pub fn named(variable: &str, packages: &[&str]) -> Option<PathBuf> {
    let python = std::env::var_os(variable).map_or_else(|| PathBuf::from("python3"), PathBuf::from);
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
            crate::skip(&format!(
                "{} cannot import {}; set {variable}",
                python.display(),
                packages.join(", ")
            ));
            None
        }
    }
}
