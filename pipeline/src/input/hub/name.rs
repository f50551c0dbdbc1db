//! Names of models on a hub: `hf://ORG/NAME[@REVISION]` or `ORG/NAME[@REVISION]`.

use super::cache::{is_commit, is_id, is_safe};
use std::path::Path;

/// A model repository of the hub, at a revision if one is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/NAME`, or `NAME` alone for the few repositories without an organisation.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
}

impl HubName {
    /// Parses `hf://ORG/NAME[@REV]` or `ORG/NAME[@REV]`; none if `text` is neither. Does not look
    /// at the disk or the network.
    pub fn parse(text: &str) -> Option<HubName> {
        let (rest, marked) = match text.strip_prefix("hf://") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (rest, None),
        };
        let one_slash = id.matches('/').count() == 1;
        let valid_id =
            is_id(id) && (one_slash || (marked && !id.contains('/'))) && !id.starts_with('.');
        let valid_revision = revision.is_none_or(is_safe);
        (valid_id && valid_revision)
            .then(|| HubName { id: id.to_string(), revision: revision.map(String::from) })
    }

    /// The repository that `text` names, unless it is a local path: texts that begin with `hf://`,
    /// and `ORG/NAME` where no file or folder of that name exists.
    pub fn unless_local(text: &str) -> Option<HubName> {
        if text.starts_with("hf://") || !Path::new(text).exists() {
            HubName::parse(text)
        } else {
            None
        }
    }

    /// Whether the revision is a full commit id, whose files never change.
    pub fn is_pinned(&self) -> bool {
        self.revision.as_deref().is_some_and(is_commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names() {
        let name = |id: &str, revision: Option<&str>| {
            Some(HubName { id: id.to_string(), revision: revision.map(String::from) })
        };
        assert_eq!(HubName::parse("hf://Qwen/Qwen3-4B"), name("Qwen/Qwen3-4B", None));
        assert_eq!(HubName::parse("Qwen/Qwen3-4B"), name("Qwen/Qwen3-4B", None));
        assert_eq!(HubName::parse("hf://gpt2@main"), name("gpt2", Some("main")));
        assert_eq!(HubName::parse("hf://a/b@refs/pr/3"), name("a/b", Some("refs/pr/3")));
        for none in [
            "",
            "gpt2",
            "hf://",
            "hf://a/b/c",
            "/a/b",
            "./a",
            "../a",
            "a/b/c",
            "~/a",
            "hf://a/b@",
            "hf://a/b@../x",
            "a b/c",
            "gs://a/b",
        ] {
            assert_eq!(HubName::parse(none), None, "{none:?}");
        }
        let pinned = HubName::parse("a/b@0123456789abcdef0123456789abcdef01234567").unwrap();
        assert!(pinned.is_pinned() && !HubName::parse("a/b@main").unwrap().is_pinned());
    }
}
