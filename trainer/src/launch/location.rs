//! Where a machine gets its input from, and where it puts its results.
//!
//! In: a text as typed. Out: a [`Location`], or a refusal. A bucket may not be looked into here: it
//! is read and written by the programs on the machine.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What a bucket must be.
const BUCKET: &str = "expected gs://NAME, s3://NAME or az://NAME, or a folder in it: NAME of at most 222 lower-case letters, digits, -, _ and ., a folder of letters, digits and -_.=+@";

const SCHEMES: [&str; 3] = ["gs://", "s3://", "az://"];

/// Where a dataset or a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// A local folder or file, sent to the machine.
    Local(PathBuf),
    /// A bucket, which the program on the machine reads.
    Bucket(String),
    /// A hub name, which the program on the machine resolves.
    Hub(String),
}

impl Location {
    /// The bucket, if it is one.
    pub(super) fn bucket(&self) -> Option<&str> {
        match self {
            Location::Bucket(text) => Some(text),
            Location::Local(_) | Location::Hub(_) => None,
        }
    }
}

/// What a local folder has to be, for the text of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// A model, which may be on the hub.
    Model,
    /// A packed dataset.
    Dataset,
}

/// Whether a text is a bucket, or a folder in one, that a shell takes as it is: names as Google,
/// Amazon and Azure allow them, folders without `..` or characters that mean something else.
pub(super) fn is_bucket(text: &str) -> bool {
    let rest = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest else { return false };
    let mut parts = rest.trim_end_matches('/').split('/');
    let name = parts.next().unwrap_or_default();
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-=+@".contains(c);
    (1..=222).contains(&name.len())
        && name.chars().all(|c| edge(c) || "._-".contains(c))
        && name.starts_with(edge)
        && name.ends_with(edge)
        && parts.all(|part| !part.trim_matches('.').is_empty() && part.chars().all(plain))
}

/// Whether a text begins as a bucket does.
pub(super) fn has_scheme(text: &str) -> bool {
    SCHEMES.iter().any(|scheme| text.starts_with(scheme))
}

/// A bucket without a trailing slash; `option` names it in the refusal of anything else.
pub(super) fn bucket(option: &str, text: &str) -> Result<String> {
    match is_bucket(text) {
        true => Ok(text.trim_end_matches('/').into()),
        false => Err(Error::Usage(format!("{option}{text}: {BUCKET}"))),
    }
}

/// The location that `text` names: a bucket, an existing folder, or (for a model) a hub name.
pub(super) fn locate(text: &str, here: &Path, expected: Expected) -> Result<Location> {
    let model = expected == Expected::Model;
    let option = if model { "--source " } else { "data.dir=" };
    if has_scheme(text) {
        return bucket(option, text).map(Location::Bucket);
    }
    let path = here.join(text);
    if path.is_dir() {
        return Ok(Location::Local(path));
    }
    if model && is_hub(text) {
        return Ok(Location::Hub(text.into()));
    }
    let wanted = if model {
        "a folder, hf://org/name, org/name, gs://, s3:// or az://"
    } else {
        "a folder written by dlm-prep, gs://, s3:// or az://"
    };
    Err(Error::Usage(format!("{option}{text}: no such folder here; expected {wanted}")))
}

/// Whether a text has the form of a name on the hub.
pub(super) fn is_hub(text: &str) -> bool {
    let named = text.strip_prefix("hf://").unwrap_or(text);
    let parts: Vec<&str> = named.split('/').collect();
    let plain = |part: &&str| {
        !part.is_empty()
            && !part.starts_with(['.', '~', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-@".contains(c))
    };
    parts.len() == 2 && parts.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_names_that_clouds_and_shells_take() {
        for good in ["gs://b", "s3://b/", "az://con-tainer/a/b.c", "gs://b/dlm/q=1", "s3://a.b_c"] {
            assert!(is_bucket(good), "{good}");
        }
        for bad in [
            "gs://",
            "gs:///a",
            "gs://B",
            "gs://-b",
            "gs://b/..",
            "gs://b/a b",
            "gs://b/$x",
            "gs://b//a",
            "b",
            "http://b",
            "s3://b/`x`",
            "gs://b/'",
        ] {
            assert!(!is_bucket(bad), "{bad}");
        }
    }

    #[test]
    fn names_on_the_hub_have_two_parts() {
        for good in ["hf://org/name", "org/name", "hf://a/b@v1.0", "Qwen/Qwen3-4B"] {
            assert!(is_hub(good), "{good}");
        }
        for bad in ["name", "a/b/c", "../b", "a/", "hf://a", "a/b c", "a/$(b)", "-a/b"] {
            assert!(!is_hub(bad), "{bad}");
        }
    }
}
