//! What a packager installs beside the programs: `--version`, completions, manual pages.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dlm_test_support::{capture, command, repository};

const PROGRAMS: [&str; 3] = ["dlm-prep", "dlm-train", "wf"];

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    Ok(capture(command(program, &repository())?.args(arguments))?.ok()?.stdout)
}

#[test]
fn the_version_names_a_commit() -> Result<()> {
    for program in PROGRAMS {
        let version = said(program, &["--version"])?;
        let begin = format!("{program} {} (commit ", env!("CARGO_PKG_VERSION"));
        ensure!(version.starts_with(&begin) && version.trim_end().ends_with(')'), "{version}");
    }
    ensure!(said("dlm-train", &["--version"])?.contains("native"));
    Ok(())
}

/// Commands in the help of a program: the lines under its heading, up to the next empty line.
fn commands(help: &str) -> BTreeSet<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_string).collect()
}

#[test]
fn every_command_has_a_page_and_is_completed() -> Result<()> {
    for program in PROGRAMS {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("share/man1");
        capture(command(program, &repository())?.arg("man").arg(&folder))?.ok()?;
        let names = commands(&said(program, &["--help"])?);
        ensure!(names.len() > 5 && names.contains("man"), "{names:?}");
        let script = said(program, &["completions", "bash"])?;
        for name in names.iter().filter(|name| *name != "help") {
            let page = std::fs::read_to_string(folder.join(format!("{program}-{name}.1")))
                .with_context(|| format!("{program} {name}"))?;
            ensure!(page.contains(".SH SYNOPSIS") && page.contains(".SH OPTIONS"), "{page}");
            ensure!(script.contains(&format!("{name})")), "{name} is not completed");
        }
        ensure!(folder.join(format!("{program}.1")).is_file());
        let file = dir.path().join("script");
        std::fs::write(&file, script)?;
        if let Ok(checked) = Command::new("bash").arg("-n").arg(&file).status() {
            ensure!(checked.success(), "bash does not read the completions of {program}");
        }
    }
    Ok(())
}
