//! Every dependency has a licence that `deny.toml` allows, and comes from crates.io.
//!
//! A part of what `cargo deny check` tests, for machines without it. Reads `cargo metadata` with
//! all features; skipped with a message where the sources of a dependency were not downloaded
//! (`cargo fetch --locked` downloads them).

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dlm_test_support::{capture, repository, skip};
use serde_json::Value;

/// The strings of `key = [...]` in deny.toml, up to the closing bracket.
fn list(toml: &str, key: &str) -> Result<BTreeSet<String>> {
    let (_, after) =
        toml.split_once(&format!("\n{key} = [")).with_context(|| format!("no {key}"))?;
    let (list, _) = after.split_once(']').with_context(|| format!("{key} has no end"))?;
    Ok(list.split('"').skip(1).step_by(2).map(str::to_string).collect())
}

/// Crates whose licence `[[licenses.clarify]]` states.
fn clarified(toml: &str) -> BTreeSet<String> {
    let blocks = toml.split("[[licenses.clarify]]").skip(1);
    blocks
        .filter_map(|b| Some(b.split_once("crate = \"")?.1.split_once('"')?.0.to_string()))
        .collect()
}

/// Whether an SPDX expression can be met with the allowed licences. `/` is an old way to write OR.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at, allow) && at == words.len()
}

fn either(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut met = both(words, at, allow);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= both(words, at, allow);
    }
    met
}

fn both(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allow);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allow);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = either(words, at, allow);
        *at += 1;
        return met;
    }
    let mut licence = word.to_string();
    if words.get(*at) == Some(&"WITH") {
        licence = [word, "WITH", words.get(*at + 1).unwrap_or(&"")].join(" ");
        *at += 2;
    }
    allow.contains(&licence)
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allow = BTreeSet::from(["MIT".to_string(), "Apache-2.0 WITH LLVM-exception".to_string()]);
    for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND MIT"] {
        assert!(allowed(good, &allow), "{good}");
    }
    assert!(allowed("Apache-2.0 WITH LLVM-exception OR GPL-3.0", &allow));
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(MIT OR GPL-3.0) AND GPL-3.0"] {
        assert!(!allowed(bad, &allow), "{bad}");
    }
}

#[test]
fn every_dependency_has_an_allowed_licence_and_source() -> Result<()> {
    let toml = std::fs::read_to_string(repository().join("deny.toml"))?;
    let (allow, clarified) = (list(&toml, "allow")?, clarified(&toml));
    let version = capture(Command::new("rustc").arg("-vV"))?.ok()?.stdout;
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).context("no host")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args(["metadata", "--format-version", "1", "--locked"]);
    let metadata =
        capture(command.args(["--offline", "--all-features", "--filter-platform", host]))?;
    if metadata.stderr.contains("--offline was specified") {
        skip("licences: some dependencies were not downloaded; run cargo fetch --locked");
        return Ok(());
    }
    let metadata = metadata.ok()?.json()?;
    let packages = metadata["packages"].as_array().context("packages")?;
    ensure!(packages.len() > 300, "only {} packages", packages.len());
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or("").to_string();
    let mut problems = Vec::new();
    for package in packages {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if !clarified.contains(&name) && !allowed(&licence, &allow) {
            problems.push(format!("{name} {}: licence {licence:?}", text(package, "version")));
        }
        let source = text(package, "source");
        if !(source.is_empty() || source.ends_with("github.com/rust-lang/crates.io-index")) {
            problems.push(format!("{name}: from {source}"));
        }
    }
    ensure!(problems.is_empty(), "not allowed by deny.toml:\n  {}", problems.join("\n  "));
    Ok(())
}
