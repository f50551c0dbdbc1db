//! Configuration errors. Each message says where, what was written, what was expected, and what to
//! do.

use std::path::PathBuf;

/// A configuration that cannot be used (exit code 2).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`{}; {known}", did_you_mean(.nearest))]
    UnknownKey {
        /// Dotted key as written.
        key: String,
        /// File or override that contains it.
        origin: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
        /// The keys that exist there.
        known: String,
    },
    /// A key or value under the name it had before it was renamed.
    #[error("{origin}: `{old}` is now called `{new}`; write `{new}`")]
    Renamed {
        /// File or override that contains it.
        origin: String,
        /// The name that was written, as `section.key` or `section.key=value`.
        old: String,
        /// The name to write instead.
        new: String,
    },
    /// A choice that its group does not have.
    #[error("{origin}: group `{group}` has no choice `{choice}`{}; it has {}", did_you_mean(.nearest), .known.join(", "))]
    UnknownChoice {
        /// Group, for example `model`.
        group: String,
        /// Name asked for.
        choice: String,
        /// File or override that contains it.
        origin: String,
        /// The choice that looks most like it.
        nearest: Option<String>,
        /// All choices.
        known: Vec<String>,
    },
    /// A value of the wrong type.
    #[error("{origin}: `{key}` is {value}; expected {expected}")]
    Type {
        /// Dotted key.
        key: String,
        /// File or override that contains it.
        origin: String,
        /// The value in words.
        value: String,
        /// The values the key takes.
        expected: String,
    },
    /// A value of the right type that is out of range, alone or together with another.
    #[error("`{key}` is {value}; expected {expected}")]
    Value {
        /// Dotted key.
        key: &'static str,
        /// The value.
        value: String,
        /// The values the key takes.
        expected: String,
    },
    /// A key without the value it needs.
    #[error(
        "`{key}` has no value; expected {expected}; set it in {config} or give `{key}=...` on the command line"
    )]
    Missing {
        /// Dotted key.
        key: String,
        /// The values the key takes.
        expected: String,
        /// Path of the main file.
        config: String,
    },
    /// An override that is not `key=value`.
    #[error("override `{text}`: {problem}; write `group=choice` or `section.key=value`")]
    Override {
        /// As written.
        text: String,
        /// The problem.
        problem: String,
    },
    /// A file that is not YAML, or not of the expected structure.
    #[error("{origin}: {problem}")]
    Yaml {
        /// File.
        origin: String,
        /// The problem, with line and column where known.
        problem: String,
    },
    /// `${key}` that cannot be replaced.
    #[error("{origin}: `{key}` refers to `${{{reference}}}`{}: {problem}", did_you_mean(.nearest))]
    Interpolation {
        /// Dotted key whose value contains the reference.
        key: String,
        /// File or override that contains it.
        origin: String,
        /// The key it refers to.
        reference: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
        /// The problem.
        problem: String,
    },
    /// A `--config-dir` that holds no configuration.
    #[error("--config-dir {}: {problem}", .path.display())]
    Dir {
        /// As written.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// A file that cannot be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// The reason given by the operating system.
        source: std::io::Error,
    },
}

impl From<ConfigError> for crate::error::Error {
    fn from(error: ConfigError) -> Self {
        crate::error::Error::Config(Box::new(error))
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

/// The candidate most like `name` by edit distance, where an equal last part counts as close; none
/// when nothing is close.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_lowercase();
    let name_last = last(name);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let candidate_last = last(candidate);
        let whole = distance(&name.to_lowercase(), &candidate.to_lowercase());
        let tail = distance(&name_last, &candidate_last);
        // The right key in the wrong section is one mistake, however long the section's name is.
        let score = whole.min(tail + usize::from(candidate != candidate_last.as_str()));
        let limit = 1 + candidate_last.len().max(name_last.len()) / 4;
        if score <= limit && best.is_none_or(|(least, _)| score < least) {
            best = Some((score, candidate));
        }
    }
    best.map(|(_, candidate)| candidate.to_string())
}

/// Edit distance in characters: insertions, deletions, substitutions and swaps of neighbours count
/// 1 each.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
                let mut least = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits_and_swaps() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("sead", "seda"), 1);
    }

    #[test]
    fn nearest_prefers_the_same_last_part() {
        let keys = ["optim.lr", "optim.eps", "train.seed", "conversion.total_tokens"];
        assert_eq!(nearest("train.lr", keys).as_deref(), Some("optim.lr"));
        assert_eq!(nearest("train.sead", keys).as_deref(), Some("train.seed"));
        assert_eq!(nearest("total_token", keys).as_deref(), Some("conversion.total_tokens"));
        assert_eq!(nearest("zebra.giraffe", keys), None);
    }
}
