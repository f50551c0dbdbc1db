//! Files of a folder or a repository that are not read: how many for which reason, and the first of
//! them by name.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Names that are kept for each reason.
const EXAMPLES: usize = 3;

/// Files that are not read, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NotRead {
    reasons: BTreeMap<String, (u64, Vec<String>)>,
}

impl NotRead {
    /// Counts a file. `reason` says of several files what they are, as in "of split test".
    pub(crate) fn add(&mut self, reason: &str, path: &str) {
        if !self.reasons.contains_key(reason) {
            self.reasons.insert(reason.to_string(), Default::default());
        }
        if let Some((count, examples)) = self.reasons.get_mut(reason) {
            *count += 1;
            if examples.len() < EXAMPLES {
                examples.push(shown(path));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Count and first names by reason.
    pub(crate) fn to_json(&self) -> Value {
        let entry = |(count, first): &(u64, Vec<String>)| json!({"files": count, "first": first});
        self.reasons.iter().map(|(reason, e)| (reason.clone(), entry(e))).collect()
    }
}

/// `2 files of split test (test.jsonl, more/test.jsonl); 1 file with a hidden name (.x.jsonl)`.
impl std::fmt::Display for NotRead {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        for (k, (reason, (count, examples))) in self.reasons.iter().enumerate() {
            let (files, more) = (
                if *count == 1 { "file" } else { "files" },
                if *count as usize > examples.len() { ", …" } else { "" },
            );
            let gap = if k == 0 { "" } else { "; " };
            write!(f, "{gap}{count} {files} {reason} ({}{more})", examples.join(", "))?;
        }
        Ok(())
    }
}

/// A name as it may stand in a terminal and in a manifest: short, without control characters and
/// marks that change the direction of writing.
pub(crate) fn shown(name: &str) -> String {
    let plain = |c: char| if c.is_control() || is_direction_mark(c) { '\u{fffd}' } else { c };
    let mut out: String = name.chars().take(120).map(plain).collect();
    if name.chars().nth(120).is_some() {
        out.push('…');
    }
    out
}

/// Whether a character changes the direction of writing, or ends a line unseen.
pub(crate) fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_and_the_first_are_named() {
        let mut n = NotRead::default();
        for k in 0..5 {
            n.add("of split test", &format!("test-{k}\u{1b}.jsonl"));
        }
        n.add("with a hidden name", ".x.jsonl");
        assert_eq!(
            n.to_string(),
            "5 files of split test (test-0\u{fffd}.jsonl, test-1\u{fffd}.jsonl, test-2\u{fffd}.jsonl, …); 1 file with a hidden name (.x.jsonl)"
        );
        assert_eq!(n.to_json()["of split test"]["files"], 5);
    }
}
