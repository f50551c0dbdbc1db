//! The state of an unfinished run, `prep-state.json` in the output folder.
//!
//! It is written when a run starts and after every data file: position in the inputs, documents
//! that wait for a row, counts, files. A killed run resumes from it; since the end of a file
//! depends on rows alone, the output has the same bytes. The file is removed once the manifest is
//! written.

use crate::error::{Error, Result};
use crate::input::source::Input;
use crate::pack::mixture::MixtureState;
use crate::pack::packer::PendingDocument;
use crate::pack::seen::SeenMark;
use crate::run::batch::Cursor;
use dlm_datasets::fs::write_atomic;
use dlm_datasets::manifest::Manifest;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the state file.
pub(crate) const STATE_FILE: &str = "prep-state.json";
/// What the user can do about a state that cannot be resumed.
pub(crate) const START_OVER: &str = "give --overwrite to start over, or another --out";

/// An input file as it was when the run started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InputStamp {
    name: String,
    bytes: u64,
    /// Nanoseconds since 1970; of a file in a bucket what changes with its tag; 0 for one of a hub.
    modified: u64,
}

impl InputStamp {
    /// The stamps of all inputs, as the files are now.
    pub(crate) fn of(inputs: &[Input]) -> Vec<InputStamp> {
        let modified = |path: &Path| {
            let time = std::fs::metadata(path).and_then(|m| m.modified()).ok();
            time.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
                .map_or(0, |d| d.as_nanos() as u64)
        };
        inputs
            .iter()
            .map(|i| InputStamp {
                name: i.name.clone(),
                bytes: i.bytes,
                modified: i.remote.as_ref().map_or_else(|| modified(&i.path), |r| r.stamp),
            })
            .collect()
    }
}

/// Everything that a resumed run needs besides its inputs.
#[derive(Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Fingerprint of the run: settings, tokenizer, template, version, inputs.
    pub fingerprint: String,
    /// The input files when the run started.
    pub inputs: Vec<InputStamp>,
    /// Position of each stream.
    pub cursors: Vec<Cursor>,
    /// Tokens taken from each source.
    pub mixture: MixtureState,
    pub rows_seen: u64,
    /// The manifest so far, with counts and finished files.
    pub manifest: Manifest,
    /// Number of the next document of the train and the eval packer.
    pub next_documents: [u64; 2],
    /// Documents that wait in the train and the eval packer.
    pub pending: [Vec<PendingDocument>; 2],
    /// Conversations without any token to learn from.
    pub unsupervised: u64,
    /// Fingerprints of the conversations seen, under `--dedup`.
    pub seen: SeenMark,
}

impl RunState {
    /// The state in `dir`, if there is one.
    pub(crate) fn read(dir: &Path) -> Result<Option<RunState>> {
        let path = dir.join(STATE_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("reading", &path)(e)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::Output {
            path: dir.to_path_buf(),
            reason: format!("{STATE_FILE} cannot be read ({e}); give --overwrite to start over"),
        })
    }

    /// Writes the state into `dir`, atomically.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(write_atomic(&dir.join(STATE_FILE), &text)?)
    }

    /// Whether this is the state of a run with `fingerprint` over `inputs`, and the finished files
    /// are as it wrote them; if not, the error says what differs.
    pub(crate) fn check(
        &self,
        dir: &Path,
        fingerprint: &str,
        inputs: &[Input],
    ) -> std::result::Result<(), String> {
        if self.fingerprint != fingerprint {
            return Err(format!(
                "holds the unfinished output of another run (other settings, tokenizer, template or version); {START_OVER}"
            ));
        }
        if self.inputs != InputStamp::of(inputs) {
            return Err(format!(
                "holds the unfinished output of a run over other inputs, or they have changed since; {START_OVER}"
            ));
        }
        for f in &self.manifest.files {
            let bytes = std::fs::metadata(dir.join(&f.path)).map(|m| m.len()).unwrap_or(0);
            if bytes != f.bytes {
                return Err(format!(
                    "{} has {bytes} bytes, the unfinished run wrote {}; {START_OVER}",
                    f.path, f.bytes
                ));
            }
        }
        Ok(())
    }
}

/// Removes the state file from `dir`.
pub(crate) fn remove_state(dir: &Path) -> Result<()> {
    let path = dir.join(STATE_FILE);
    std::fs::remove_file(&path).map_err(Error::io("removing", &path))
}
