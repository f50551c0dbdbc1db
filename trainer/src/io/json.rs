//! JSON files: read as a value or a type, written atomically.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::model::json_text;
use dlm_datasets::fs;

/// Read a JSON file. `expected` completes the error "PATH: not …".
pub(crate) fn read<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<T> {
    let text = json_text::read(path).map_err(|e| Error::io(path, "reading", e))?;
    parse(path, &text, expected)
}

/// [`read`], or `None` where there is no such file.
pub(crate) fn read_if_present<T: DeserializeOwned>(
    path: &Path,
    expected: &str,
) -> Result<Option<T>> {
    match json_text::read(path) {
        Ok(text) => parse(path, &text, expected).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "reading", e)),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str, expected: &str) -> Result<T> {
    serde_json::from_str(text)
        .or_else(|_| serde_json::from_value(json_text::parse(text)?))
        .map_err(|e| Error::format(path, format!("not {expected}: {e}")))
}

/// Write `value`, indented, with a line break at the end; a reader sees the old file or the new.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    bytes.push(b'\n');
    Ok(fs::write_atomic(path, &bytes)?)
}
