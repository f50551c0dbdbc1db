//! Which files of a folder or a repository are read: config and split, as `load_dataset` of Python
//! chooses them.
//!
//! In: the paths of all data files, the configs of the card (or those that follow from names), and
//! what the user named. Out: the files, and what was taken and left. Where the choice is not clear,
//! the error lists what there is.

use crate::input::card::{Card, CardConfig};
use crate::input::glob::Glob;
use crate::input::not_read::{NotRead, shown};
use crate::input::split_names::{converted, in_order, says_a_purpose, splits_of_names};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The name that takes all splits.
pub(crate) const ALL: &str = "all";

/// Characters of patterns times characters of paths that are compared for a config: 30 patterns of
/// 60 characters and 100,000 files are half of it.
const MOST_MATCHES: usize = 20_000_000_000;

/// What the user named.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileSelection {
    /// Config of the card.
    pub config: Option<String>,
    /// Splits, or (without a card) names of folders and files.
    pub splits: Vec<String>,
    /// Globs over paths, which name the files without regard to configs and splits.
    pub globs: Vec<String>,
}

/// What was taken of a folder or a repository, and what not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    /// Folder or repository.
    pub place: String,
    pub config: Option<String>,
    /// Configs that were not chosen.
    pub other_configs: Vec<String>,
    /// Splits by name; none where globs or names of folders chose the files.
    pub splits: Vec<String>,
    /// Number of files.
    pub files: usize,
    pub not_read: NotRead,
}

/// How files are grouped into configs.
#[derive(Clone, Copy)]
pub(crate) enum Layout<'a> {
    /// By the card, or by the names of files.
    Card(Option<&'a Card>),
    /// The hub's own conversion: a folder for each config, in it one for each split. The card says
    /// which config is the default.
    Converted(Option<&'a Card>),
}

/// Splits with the indices of their files.
type Splits = Vec<(String, Vec<usize>)>;

/// The indices of the files that are read of `paths`, ascending; what was taken and left is noted
/// in `taken`.
///
/// # Errors
/// What there is, where the choice is not clear or names something else.
pub(crate) fn choose(
    paths: &[&str],
    layout: Layout,
    selection: &FileSelection,
    taken: &mut Taken,
) -> Result<Vec<usize>, String> {
    let chosen = if selection.globs.is_empty() {
        let (splits, has_card) = match layout {
            Layout::Card(Some(card)) => (config_of_card(paths, card, selection, taken)?, true),
            Layout::Card(None) => {
                default_only(selection)?;
                (splits_of_names(paths), false)
            }
            Layout::Converted(card) => (config_of_folders(paths, card, selection, taken)?, true),
        };
        let chosen = take_splits(paths, &splits, has_card, selection, taken)?;
        if let Layout::Card(Some(card)) = layout {
            check_named_files(paths, card, taken)?;
        }
        chosen
    } else {
        if let Some(config) = &selection.config {
            return Err(format!("--files names files, so --config {config} is left out"));
        }
        let globs: Vec<Glob> = selection.globs.iter().map(|g| Glob::new(g)).collect();
        let fits = |path: &str| {
            globs.iter().any(|g| g.matches(path))
                && (selection.splits.is_empty()
                    || selection.splits.iter().any(|s| is_named(path, s)))
        };
        let chosen: Vec<usize> = (0..paths.len()).filter(|&k| fits(paths[k])).collect();
        let kept: HashSet<usize> = chosen.iter().copied().collect();
        for k in (0..paths.len()).filter(|k| !kept.contains(k)) {
            taken.not_read.add("outside of --files", paths[k]);
        }
        chosen
    };
    taken.files = chosen.len();
    Ok(chosen)
}

/// Whether a folder or the file of a path has a name, or one that goes on behind it with `-` or
/// `_`.
fn is_named(path: &str, name: &str) -> bool {
    path.split('/').any(|part| {
        let stem = part.split('.').next().unwrap_or(part);
        stem == name || stem.strip_prefix(name).is_some_and(|r| r.starts_with(['-', '_']))
    })
}

fn default_only(selection: &FileSelection) -> Result<(), String> {
    match selection.config.as_deref() {
        None | Some("default") => Ok(()),
        Some(config) => Err(format!(
            "has no config {config:?}: there is no README.md with configs in its front matter"
        )),
    }
}

/// The config that the user named, else the default one.
fn choose_config<'c>(
    names: &[&'c str],
    defaults: &[&'c str],
    selection: &FileSelection,
    taken: &mut Taken,
) -> Result<&'c str, String> {
    let chosen = match (selection.config.as_deref(), names, defaults) {
        (Some(config), ..) => names.iter().find(|n| **n == config).ok_or_else(|| {
            format!("has no config {config:?}; it has {}", listed(names.iter().copied()))
        })?,
        (None, [only], _) | (None, _, [only]) => only,
        (None, _, []) => {
            return Err(format!(
                "has the configs {}, and none is its default; choose with --config NAME (in a recipe: config: NAME)",
                listed(names.iter().copied())
            ));
        }
        (None, _, several) => {
            return Err(format!(
                "has several default configs, {}; choose with --config NAME (in a recipe: config: NAME)",
                listed(several.iter().copied())
            ));
        }
    };
    taken.config = Some(chosen.to_string());
    taken.other_configs = names.iter().filter(|n| *n != chosen).map(|n| n.to_string()).collect();
    Ok(chosen)
}

/// The splits of the chosen config of a card; `taken` counts the files of others.
fn config_of_card(
    paths: &[&str],
    card: &Card,
    selection: &FileSelection,
    taken: &mut Taken,
) -> Result<Splits, String> {
    let names: Vec<&str> = card.configs.iter().map(|c| c.name.as_str()).collect();
    let is_default = |c: &&CardConfig| c.default || c.name == "default";
    let defaults: Vec<&str> =
        card.configs.iter().filter(is_default).map(|c| c.name.as_str()).collect();
    let name = choose_config(&names, &defaults, selection, taken)?;
    let index: HashMap<&str, usize> = paths.iter().enumerate().map(|(k, p)| (*p, k)).collect();
    let Some(config) = card.configs.iter().find(|c| c.name == name) else {
        return Err(format!("has no config {name:?}"));
    };
    if !is_cheap(paths, config) {
        return Err(format!("config {} has too many patterns for so many files", shown(name)));
    }
    let splits = splits_of_config(paths, &index, config);
    if let Some(split) = selection.splits.iter().find(|s| !knows(&splits, s)) {
        let named = |c: &&CardConfig| c.splits.iter().flatten().any(|s| s.0 == *split);
        let holder = card.configs.iter().filter(|c| c.name != name).find(named);
        let hint = match holder {
            Some(c) => format!("; config {} has one: --config {}", shown(&c.name), shown(&c.name)),
            None => String::new(),
        };
        return Err(unknown_split(Some(name), split, &splits) + &hint);
    }
    let mine: HashSet<usize> = splits.iter().flat_map(|s| s.1.iter().copied()).collect();
    for (k, path) in paths.iter().enumerate() {
        if !mine.contains(&k) {
            taken.not_read.add(&format!("outside of config {}", shown(name)), path);
        }
    }
    Ok(splits)
}

/// Whether matching a config's patterns takes no longer than a few seconds.
fn is_cheap(paths: &[&str], config: &CardConfig) -> bool {
    let globs = config.splits.iter().flatten().flat_map(|s| &s.1).filter(|p| !Glob::is_plain(p));
    let patterns: usize = globs.map(|p| config.path(p).len()).sum();
    let characters: usize = paths.iter().map(|p| p.len()).sum();
    patterns.saturating_mul(characters) <= MOST_MATCHES
}

/// The splits of a config with the files that its patterns match.
fn splits_of_config(paths: &[&str], index: &HashMap<&str, usize>, config: &CardConfig) -> Splits {
    let dir = if config.dir.is_empty() { String::new() } else { format!("{}/", config.dir) };
    let Some(splits) = &config.splits else {
        let inside: Vec<usize> = (0..paths.len()).filter(|&k| paths[k].starts_with(&dir)).collect();
        let names: Vec<&str> = inside.iter().map(|&k| &paths[k][dir.len()..]).collect();
        let back = |files: Vec<usize>| files.into_iter().map(|k| inside[k]).collect();
        return splits_of_names(&names).into_iter().map(|(s, files)| (s, back(files))).collect();
    };
    let found = |patterns: &Vec<String>| -> Vec<usize> {
        let mut files = Vec::new();
        for pattern in patterns.iter().map(|p| config.path(p)) {
            if Glob::is_plain(&pattern) {
                files.extend(index.get(pattern.as_str()));
            } else {
                let glob = Glob::new(&pattern);
                files.extend((0..paths.len()).filter(|&k| glob.matches(paths[k])));
            }
        }
        files.sort_unstable();
        files.dedup();
        files
    };
    splits.iter().map(|(split, patterns)| (split.clone(), found(patterns))).collect()
}

/// Refuses a card that names a file by its whole path for a split that is taken, where there is no
/// such file: a dataset without it would be a shorter one.
fn check_named_files(paths: &[&str], card: &Card, taken: &Taken) -> Result<(), String> {
    let there: HashSet<&str> = paths.iter().copied().collect();
    let config = card.configs.iter().find(|c| Some(&c.name) == taken.config.as_ref());
    for (config, (split, patterns)) in
        config.into_iter().flat_map(|c| c.splits.iter().flatten().map(move |s| (c, s)))
    {
        for pattern in patterns.iter().filter(|p| taken.splits.contains(split) && Glob::is_plain(p))
        {
            let path = config.path(pattern);
            if !there.contains(path.as_str()) {
                return Err(format!(
                    "README.md names {} for split {}, which is not among the parquet, JSONL and Arrow files; --files GLOB reads files without regard to it",
                    shown(&path),
                    shown(split)
                ));
            }
        }
    }
    Ok(())
}

/// The splits of the chosen config of the hub's own conversion.
fn config_of_folders(
    paths: &[&str],
    card: Option<&Card>,
    selection: &FileSelection,
    taken: &mut Taken,
) -> Result<Splits, String> {
    let mut configs: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
    for (k, path) in paths.iter().enumerate() {
        if let Some((config, split)) = converted(path) {
            configs.entry(config).or_default().entry(split).or_default().push(k);
        }
    }
    if configs.is_empty() {
        default_only(selection)?;
        return Ok(splits_of_names(paths));
    }
    let names: Vec<&str> = configs.keys().copied().collect();
    let marked = |name: &&str| {
        let of_card = card.iter().flat_map(|c| &c.configs).any(|c| c.default && c.name == *name);
        *name == "default" || of_card
    };
    let defaults: Vec<&str> = names.iter().copied().filter(|n| marked(n)).collect();
    let name = choose_config(&names, &defaults, selection, taken)?;
    for (other, splits) in configs.iter().filter(|(other, _)| **other != name) {
        for path in splits.values().flatten().map(|&k| paths[k]) {
            taken.not_read.add(&format!("of config {}", shown(other)), path);
        }
    }
    let mut splits: Splits = configs
        .get(name)
        .into_iter()
        .flatten()
        .map(|(split, files)| (split.to_string(), files.clone()))
        .collect();
    in_order(&mut splits);
    Ok(splits)
}

/// The files of the splits that the user named, else those of `train`, else those of the only one,
/// else those of all, where the names are categories.
fn take_splits(
    paths: &[&str],
    splits: &Splits,
    has_card: bool,
    selection: &FileSelection,
    taken: &mut Taken,
) -> Result<Vec<usize>, String> {
    let config = taken.config.clone();
    let mut names: Vec<String> = Vec::new();
    let mut by_name: Vec<usize> = Vec::new();
    for split in &selection.splits {
        if splits.iter().any(|s| s.0 == *split) {
            names.push(split.clone());
        } else if split == ALL {
            names.extend(splits.iter().map(|s| s.0.clone()));
        } else {
            // Without a card, categories are folders or files of that name.
            let named = (0..paths.len()).filter(|&k| !has_card && is_named(paths[k], split));
            let before = by_name.len();
            by_name.extend(named);
            if by_name.len() == before {
                return Err(unknown_split(config.as_deref(), split, splits));
            }
        }
    }
    if selection.splits.is_empty() {
        let whole = |files: &Vec<usize>| has_card || files.len() == paths.len();
        match splits.iter().find(|s| s.0 == "train") {
            Some(train) => names.push(train.0.clone()),
            None => match &splits[..] {
                [only] if whole(&only.1) => names.push(only.0.clone()),
                // code, math, chat: categories, all of them to train on
                [_, _, ..] if !splits.iter().any(|s| says_a_purpose(&s.0)) => {
                    names.extend(splits.iter().map(|s| s.0.clone()));
                }
                _ => {
                    return Err(format!(
                        "{}the splits {}, and none is named train; choose with --split NAME, or take all with --split {ALL}",
                        of_config(config.as_deref(), "has "),
                        listed(splits.iter().map(|s| s.0.as_str()))
                    ));
                }
            },
        }
    }
    let mut files = by_name;
    for (split, of_split) in splits.iter().filter(|s| names.contains(&s.0)) {
        if of_split.is_empty() {
            return Err(format!(
                "{}no parquet, JSONL or Arrow file for split {}",
                of_config(config.as_deref(), "has "),
                shown(split)
            ));
        }
        files.extend(of_split);
    }
    files.sort_unstable();
    files.dedup();
    let kept: HashSet<usize> = files.iter().copied().collect();
    let mut counted = kept.clone();
    for (split, of_split) in splits {
        for &k in of_split {
            if counted.insert(k) {
                taken.not_read.add(&format!("of split {}", shown(split)), paths[k]);
            }
        }
    }
    if !has_card {
        for (k, path) in paths.iter().enumerate() {
            if !counted.contains(&k) {
                taken.not_read.add("of no split", path);
            }
        }
    }
    taken.splits = splits.iter().map(|s| &s.0).filter(|s| names.contains(s)).cloned().collect();
    Ok(files)
}

fn knows(splits: &Splits, name: &str) -> bool {
    name == ALL || splits.iter().any(|s| s.0 == name)
}

fn unknown_split(config: Option<&str>, split: &str, splits: &Splits) -> String {
    format!(
        "{}no split {split:?} (--split {split}); there is {} (--split {ALL} takes every split, --max-rows the first rows of one)",
        of_config(config, "has "),
        listed(splits.iter().map(|s| s.0.as_str()))
    )
}

fn of_config(config: Option<&str>, has: &str) -> String {
    config.map_or(has.to_string(), |c| format!("config {} {has}", shown(c)))
}

/// Names for a message: not more than 30.
fn listed<'n>(names: impl Iterator<Item = &'n str> + Clone) -> String {
    let first: Vec<String> = names.clone().take(30).map(shown).collect();
    match names.count().saturating_sub(30) {
        0 if first.is_empty() => "none".to_string(),
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

impl Taken {
    /// Whether all files of the place were read as its only split, so that there is nothing to say.
    pub(crate) fn is_plain(&self) -> bool {
        self.not_read.is_empty()
            && self.other_configs.is_empty()
            && self.config.as_deref().is_none_or(|c| c == "default")
            && (self.splits.is_empty() || self.splits == ["train"])
    }

    /// What was taken and what not, in lines.
    pub(crate) fn describe(&self) -> Vec<String> {
        if self.is_plain() {
            return Vec::new();
        }
        let mut what: Vec<String> = Vec::new();
        if let Some(config) = &self.config {
            what.push(format!("config {}", shown(config)));
        }
        if !self.splits.is_empty() {
            what.push(format!("split {}", listed(self.splits.iter().map(String::as_str))));
        }
        what.push(format!("{} file{}", self.files, if self.files == 1 { "" } else { "s" }));
        let mut lines = vec![format!("taken      {} of {}", what.join(", "), self.place)];
        if !self.other_configs.is_empty() {
            let names = listed(self.other_configs.iter().map(String::as_str));
            lines.push(format!("not taken  config {names} (--config NAME)"));
        }
        if !self.not_read.is_empty() {
            lines.push(format!("not read   {}", self.not_read));
        }
        lines
    }

    /// For the manifest.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "from": self.place,
            "config": self.config,
            "splits": self.splits,
            "files": self.files,
            "other_configs": self.other_configs,
            "not_read": self.not_read.to_json(),
        })
    }
}
