//! Splits that follow from the names of files and folders, as the `datasets` library of Python
//! finds them where no card names them.
//!
//! In this order: `data/SPLIT-00000-of-00001.…` with any name of a split; words for train,
//! validation and test in the names of folders; such words in the names of files. Where none is
//! found, all files are the split `train`.

/// The splits that words stand for.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Splits by name, each with the indices of its files in `paths`; a file can be in several.
pub(crate) fn splits_of_names(paths: &[&str]) -> Vec<(String, Vec<usize>)> {
    let sharded = by_split(paths, |path, add| {
        if let Some(split) = split_of_shard(path) {
            add(split);
        }
    });
    if !sharded.is_empty() {
        return sharded;
    }
    let words = |text: &str, ends: bool, add: &mut dyn FnMut(&str)| {
        for (split, words) in WORDS {
            if words.iter().any(|word| has_word(text, word, ends)) {
                add(split);
            }
        }
    };
    let in_folders = by_split(paths, |path, add| {
        let (folders, _) = path.rsplit_once('/').unwrap_or(("", path));
        folders.split('/').for_each(|folder| words(folder, true, add));
    });
    if !in_folders.is_empty() {
        return in_folders;
    }
    let in_files = by_split(paths, |path, add| {
        words(path.rsplit('/').next().unwrap_or(path), false, add);
    });
    if !in_files.is_empty() {
        return in_files;
    }
    vec![("train".to_string(), (0..paths.len()).collect())]
}

/// Whether the name of a split says what the split is for, as `train_sft` and `test` do; others,
/// such as `code` and `math`, are categories.
pub(crate) fn says_a_purpose(split: &str) -> bool {
    WORDS.iter().any(|(_, words)| words.iter().any(|word| has_word(split, word, true)))
}

/// Config and split in `CONFIG/SPLIT/0000.parquet` or `CONFIG/partial-SPLIT/…`, as on the branch
/// that holds the hub's own conversion.
pub(crate) fn converted(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.split('/');
    let (config, split) = (parts.next()?, parts.next()?);
    parts.next()?;
    Some((config, split.strip_prefix("partial-").unwrap_or(split)))
}

/// Train first, then validation and test, then others by name.
pub(crate) fn in_order(splits: &mut [(String, Vec<usize>)]) {
    let rank = |name: &str| WORDS.iter().position(|w| w.0 == name).unwrap_or(WORDS.len());
    splits.sort_by(|a, b| (rank(&a.0), &a.0).cmp(&(rank(&b.0), &b.0)));
}

fn by_split(
    paths: &[&str],
    splits_of: impl Fn(&str, &mut dyn FnMut(&str)),
) -> Vec<(String, Vec<usize>)> {
    let mut splits: std::collections::BTreeMap<String, Vec<usize>> = Default::default();
    for (k, path) in paths.iter().enumerate() {
        splits_of(path, &mut |split| {
            if !splits.contains_key(split) {
                splits.insert(split.to_string(), Vec::new());
            }
            if let Some(files) = splits.get_mut(split).filter(|f| f.last() != Some(&k)) {
                files.push(k);
            }
        });
    }
    let mut splits: Vec<_> = splits.into_iter().collect();
    in_order(&mut splits);
    splits
}

/// The split in `data/SPLIT-00000-of-00001….`.
fn split_of_shard(path: &str) -> Option<&str> {
    let name = path.strip_prefix("data/").filter(|n| !n.contains('/'))?;
    let at = name.find("-of-")?;
    let digits = |text: Option<&str>| text.is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()));
    let split = name.get(..at.checked_sub(6)?)?;
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    (name.as_bytes().get(at - 6) == Some(&b'-')
        && digits(name.get(at - 5..at))
        && digits(name.get(at + 4..at + 9))
        && name[at + 9..].contains('.')
        && !split.is_empty()
        && split.chars().all(word))
    .then_some(split)
}

/// Whether `word` stands in `text` between separators. Before it, also at the beginning; behind it,
/// also at the end if `ends`.
fn has_word(text: &str, word: &str, ends: bool) -> bool {
    let separates = |b: u8| b"-._ ".contains(&b) || b.is_ascii_digit();
    let bytes = text.as_bytes();
    text.match_indices(word).any(|(at, _)| {
        (at == 0 || separates(bytes[at - 1]))
            && bytes.get(at + word.len()).map_or(ends, |b| separates(*b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(paths: &[&str]) -> Vec<(String, Vec<usize>)> {
        splits_of_names(paths)
    }

    fn expected(splits: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        splits.iter().map(|(name, files)| (name.to_string(), files.to_vec())).collect()
    }

    #[test]
    fn names_of_files_and_folders() {
        for (paths, found) in [
            (
                &[
                    "data/test_sft-00000-of-00001-abc.parquet",
                    "data/train_sft-00000-of-00001.parquet",
                    "x.jsonl",
                ][..],
                &[("test_sft", &[0][..]), ("train_sft", &[1])][..],
            ),
            (
                &[
                    "data/train-00000-of-00002.parquet",
                    "data/train-00001-of-00002.parquet",
                    "data/dev-00000-of-00001.parquet",
                ],
                &[("train", &[0, 1]), ("dev", &[2])],
            ),
            (
                &["train/a.jsonl", "test-set/b.jsonl", "other/train.jsonl"],
                &[("train", &[0]), ("test", &[1])],
            ),
            (
                &["train.jsonl", "dev.jsonl", "my_eval_1.jsonl", "chat.jsonl"],
                &[("train", &[0]), ("validation", &[1]), ("test", &[2])],
            ),
            (&["train2.jsonl", "trains.jsonl"], &[("train", &[0])]),
            (&["latest.jsonl", "a/contest.jsonl", "strain.jsonl"], &[("train", &[0, 1, 2])]),
            (&["data/train.parquet", "train-00000-of-00001.parquet"], &[("train", &[0, 1])]),
            (&["validation.jsonl"], &[("validation", &[0])]),
        ] {
            assert_eq!(splits(paths), expected(found), "{paths:?}");
        }
    }

    #[test]
    fn conversions_name_config_and_split() {
        assert_eq!(converted("default/train/0000.parquet"), Some(("default", "train")));
        assert_eq!(converted("a/partial-train/0000.parquet"), Some(("a", "train")));
        assert_eq!(converted("a/0000.parquet"), None);
    }
}
