//! `dlm-prep push DIR ORG/NAME`: a packed dataset to a hub.

use crate::cli::args::PushArgs;
use crate::cli::console::{self, ConsoleProgress};
use crate::error::Result;
use crate::publish::dataset::{push_dataset, write_card};
use crate::publish::push::Pushed;

/// Pushes, or writes the card alone.
pub(super) fn run(a: &PushArgs) -> Result<()> {
    let Some(id) = a.id.as_deref().filter(|_| !a.card) else {
        let path = a.dir.join("README.md");
        return console::print(&match write_card(&a.dir, a.id.as_deref())? {
            true => format!("wrote {}\n", path.display()),
            false => format!("kept {}, which is not this program's\n", path.display()),
        });
    };
    let pushed = push_dataset(&a.dir, id, a.public, &ConsoleProgress::default())?;
    console::print(&in_words(&pushed))
}

/// What was done, in a line or two.
fn in_words(pushed: &Pushed) -> String {
    let Pushed { url, commit, sent, bytes_sent, removed, unchanged, .. } = pushed;
    let removed = match removed.len() {
        0 => String::new(),
        n => format!(", {n} of an earlier push removed"),
    };
    match sent.len() {
        0 if removed.is_empty() => {
            format!("{url} at {commit}: all {unchanged} files were there already\n")
        }
        n => format!(
            "{url} at {commit}: {n} files sent ({bytes_sent} bytes), {unchanged} there already{removed}; every file checked\n"
        ),
    }
}
