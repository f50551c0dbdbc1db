//! Addresses: `gs://BUCKET/PATH`, `s3://BUCKET/PATH`, `az://CONTAINER/PATH`, `file:///PATH`.
//!
//! Nothing secret belongs into an address: one with a user name, a password, a query or a fragment
//! is refused, and the refusal does not repeat it.

use crate::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// Kind of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Google Cloud Storage.
    Gs,
    /// S3 and what speaks its protocol.
    S3,
    /// Azure Blob Storage.
    Az,
    /// A folder of this machine.
    File,
}

impl Scheme {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scheme::Gs => "gs",
            Scheme::S3 => "s3",
            Scheme::Az => "az",
            Scheme::File => "file",
        }
    }

    fn of(text: &str) -> Option<Scheme> {
        [Scheme::Gs, Scheme::S3, Scheme::Az, Scheme::File].into_iter().find(|s| s.name() == text)
    }
}

/// The address of a folder or an object in a bucket.
///
/// ```
/// use dlm_prep::bucket::BucketAddress;
///
/// let address = BucketAddress::parse("output.remote", "gs://bucket/dlm/qwen3_4b/").unwrap();
/// assert_eq!(address.unwrap().join("latest").to_string(), "gs://bucket/dlm/qwen3_4b/latest");
/// assert!(BucketAddress::parse("--model", "output/model").unwrap().is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketAddress {
    pub(super) scheme: Scheme,
    /// Name of the bucket or the container; empty for `file://`.
    pub(super) bucket: String,
    /// Without a slash at its ends; empty for the whole bucket.
    pub(super) path: String,
}

const EXPECTED: &str = "expected gs://BUCKET/PATH, s3://BUCKET/PATH, az://CONTAINER/PATH or file:///PATH (credentials come from the environment)";

/// What to write instead of other schemes.
const OTHERS: [(&str, &str); 12] = [
    ("gcs", "gs://"),
    ("s3a", "s3://"),
    ("s3n", "s3://"),
    ("abfs", "az://CONTAINER/PATH"),
    ("abfss", "az://CONTAINER/PATH"),
    ("wasb", "az://CONTAINER/PATH"),
    ("wasbs", "az://CONTAINER/PATH"),
    ("azure", "az://CONTAINER/PATH"),
    ("adl", "az://CONTAINER/PATH"),
    ("r2", "s3:// with AWS_ENDPOINT_URL"),
    ("http", "a downloaded file, or the s3://, gs:// or az:// address"),
    ("https", "a downloaded file, or the s3://, gs:// or az:// address"),
];

impl BucketAddress {
    /// The address in `text`; none where it has no scheme, as a local path, or is `hf://…`. `key`
    /// is what the text was given as; it appears in errors.
    ///
    /// # Errors
    /// [`Error::Usage`] for other schemes, and for addresses that hold more than a place.
    pub fn parse(key: &str, text: &str) -> Result<Option<BucketAddress>> {
        let Some((scheme, rest)) = split_scheme(text) else { return Ok(None) };
        let shown: &str = if is_secret(rest) { "" } else { text };
        let refused = |reason: &str| {
            let text = if shown.is_empty() { format!("{scheme}://…") } else { shown.to_string() };
            Err(Error::Usage(format!("{key} {text}: {reason}")))
        };
        let Some(kind) = Scheme::of(scheme) else {
            return match OTHERS.iter().find(|(name, _)| *name == scheme) {
                Some((_, instead)) => {
                    refused(&format!("{scheme}:// is not read; give {instead}; {EXPECTED}"))
                }
                None => refused(&format!("{scheme}:// is unknown; {EXPECTED}")),
            };
        };
        if shown.is_empty() {
            return refused(&format!(
                "holds a user name, a query or a fragment, where secrets would be seen; {EXPECTED}"
            ));
        }
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        let known = match kind {
            Scheme::File => bucket.is_empty() && rest.starts_with('/'),
            _ => !bucket.is_empty() && bucket.bytes().all(is_bucket_byte),
        };
        if !known {
            return refused(EXPECTED);
        }
        let path = path.trim_end_matches('/');
        if !path.is_empty() && !is_plain(path) {
            return refused("a part of the path is empty, `.`, `..` or holds control characters");
        }
        let (bucket, path) = (bucket.to_string(), path.to_string());
        if kind == Scheme::File && path.is_empty() {
            return refused("this is the root of the disk; give a folder");
        }
        Ok(Some(BucketAddress { scheme: kind, bucket, path }))
    }

    /// Whether `text` begins as an address does, right or wrong.
    pub fn looks_like_one(text: &str) -> bool {
        split_scheme(text).is_some()
    }

    /// The address of what is called `name` in this folder.
    #[must_use]
    pub fn join(&self, name: &str) -> BucketAddress {
        let path = match self.path.is_empty() {
            true => name.to_string(),
            false => format!("{}/{name}", self.path),
        };
        BucketAddress { path, ..self.clone() }
    }

    /// The path of what `file://` names.
    pub(crate) fn local_path(&self) -> Option<PathBuf> {
        (self.scheme == Scheme::File).then(|| PathBuf::from("/").join(&self.path))
    }

    /// The folder that this is in, and its name there; none for a whole bucket.
    pub(crate) fn split(&self) -> Option<(BucketAddress, &str)> {
        if self.path.is_empty() {
            return None;
        }
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        Some((BucketAddress { path: folder.to_string(), ..self.clone() }, name))
    }
}

impl fmt::Display for BucketAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.bucket)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

/// The scheme of an address and what follows `://`; none for local paths and for `hf://`.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let letters = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let begins = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    (letters && begins && scheme != "hf").then_some((scheme, rest))
}

/// Whether what follows `://` has a user name, a query or a fragment.
fn is_secret(rest: &str) -> bool {
    let authority = rest.split('/').next().unwrap_or_default();
    authority.contains('@') || rest.contains(['?', '#'])
}

fn is_bucket_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

/// Whether a path below a folder stays below it on the local disk, too, and can be shown.
pub(crate) fn is_plain(path: &str) -> bool {
    let part_ok = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() < 256;
    path.len() < 2048
        && path.split('/').all(part_ok)
        && !path.contains(['\\', '\0'])
        && !path.chars().any(|c| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Option<String>, String> {
        let parsed = BucketAddress::parse("--model", text);
        parsed.map(|a| a.map(|a| a.to_string())).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_are_told_from_paths_and_hub_names() {
        for (text, address) in [
            ("gs://b/x/y/", "gs://b/x/y"),
            ("s3://b", "s3://b"),
            ("az://c/x y", "az://c/x y"),
            ("file:///mnt/x/", "file:///mnt/x"),
        ] {
            assert_eq!(parse(text), Ok(Some(address.to_string())));
        }
        for path in ["", "x", "/x/y", "Qwen/Qwen3-4B", "hf://Qwen/Qwen3-4B", "a:b", "://x"] {
            assert_eq!(parse(path), Ok(None), "{path}");
        }
        let address = BucketAddress::parse("x", "s3://b/x/y").unwrap().unwrap();
        let (folder, name) = address.split().unwrap();
        assert_eq!((folder.to_string().as_str(), name), ("s3://b/x", "y"));
        assert_eq!(folder.join("z").to_string(), "s3://b/x/z");
        assert_eq!(BucketAddress::parse("x", "s3://b").unwrap().unwrap().split(), None);
    }

    #[test]
    fn other_schemes_and_odd_paths_are_refused_by_name() {
        for (text, says) in [
            ("s3a://b/x", "give s3://"),
            ("abfss://c@account.dfs.core.windows.net/x", "give az://"),
            ("https://b.s3.amazonaws.com/x", "is not read"),
            ("foo://b/x", "is unknown"),
            ("gs://", "expected gs://BUCKET/PATH"),
            ("gs:///x", "expected gs://BUCKET/PATH"),
            ("file://host/x", "expected"),
            ("file://", "expected"),
            ("file:///", "root of the disk"),
            ("s3://b/x//y", "a part of the path is empty"),
            ("s3://b/../y", "a part of the path"),
            ("s3://b/a\u{1b}b", "control characters"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.starts_with("--model ") && e.contains(says), "{text}: {e}");
        }
    }

    #[test]
    fn what_may_be_secret_is_refused_and_not_repeated() {
        for text in [
            "s3://AKIAXXXX:hunter2@bucket/x",
            "gs://bucket/x?access_token=hunter2",
            "az://c/x#hunter2",
            "https://user:hunter2@host/x",
        ] {
            let e = parse(text).unwrap_err();
            assert!(!e.contains("hunter2") && !e.contains("AKIA"), "{e}");
        }
    }
}
