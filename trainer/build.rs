//! What `--version` says besides the version: the commit that is built, and the cargo features.
//! Both packages with programs build this file.
//!
//! `DLM_COMMIT` in the environment names the commit where the build has no git folder; set to any
//! text it also spares a rebuild after each commit.

use std::path::Path;
use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_string())
}

/// The commit of the enclosing repository, with `+changes` where files differ from it.
fn commit() -> Option<String> {
    // a folder that lies inside another project's repository is not that project's commit
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if !Path::new(&top).join("trainer/build.rs").is_file() {
        return None;
    }
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { hash } else { hash + "+changes" })
}

fn main() {
    // unchanged files alone do not run this again
    println!("cargo::rerun-if-changed=../trainer/build.rs");
    println!("cargo::rerun-if-env-changed=DLM_COMMIT");
    let given = std::env::var("DLM_COMMIT").ok().filter(|text| !text.trim().is_empty());
    let commit = given.or_else(commit).unwrap_or_else(|| "unknown".into());
    let features: Vec<&str> = [
        ("CARGO_FEATURE_NATIVE", "native"),
        ("CARGO_FEATURE_CUDA", "cuda"),
        ("CARGO_FEATURE_WGPU", "wgpu"),
    ]
    .into_iter()
    .filter(|(variable, _)| std::env::var_os(variable).is_some())
    .map(|(_, name)| name)
    .collect();
    let features =
        if features.is_empty() { String::new() } else { format!(", {}", features.join(" ")) };
    println!("cargo::rustc-env=DLM_BUILD=commit {}{features}", commit.trim());
}
