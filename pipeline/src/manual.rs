//! What a packager installs beside a program: shell completions and manual pages, made from its
//! command line.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use dlm_datasets::fs;

use crate::error::{Error, Result};

/// Arguments of the command `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Shell that reads the script.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of the command `man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Folder for the pages, one for each command; a system's folder is share/man/man1.
    pub dir: PathBuf,
}

/// The script that completes a program's command line in a shell.
pub fn completions(mut program: Command, args: &CompletionsArgs) -> String {
    let (name, mut script) = (program.get_name().to_string(), Vec::new());
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes the manual pages of a program and of its commands: `PROGRAM.1`, `PROGRAM-COMMAND.1`.
/// Returns how many there are.
///
/// # Errors
/// [`Error::Io`] where the folder or a page cannot be written.
pub fn write_man_pages(mut program: Command, args: &ManArgs) -> Result<usize> {
    std::fs::create_dir_all(&args.dir).map_err(Error::io("creating", &args.dir))?;
    program.build();
    let mut pages = Vec::new();
    collect(&program, &mut pages);
    for (name, text) in &pages {
        fs::write_atomic(&args.dir.join(name), text)?;
    }
    Ok(pages.len())
}

fn collect(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_string();
    let mut text = Vec::new();
    // writing to a vector does not fail
    let _ = Man::new(command.clone()).render(&mut text);
    pages.push((format!("{name}.1"), text));
    let below = command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help");
    below.for_each(|command| collect(command, pages));
}

/// One line about where the pages went.
pub fn wrote(pages: usize, dir: &Path) -> String {
    let name = dir.display();
    format!("{pages} pages in {name}; read one with man -l {name}/FILE")
}
