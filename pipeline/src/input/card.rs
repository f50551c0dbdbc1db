//! The card of a dataset: `configs` in the front matter of its README.md, as the `datasets` library
//! of Python reads it.
//!
//! ```yaml
//! configs:
//! - config_name: chat                 # optional; "default"
//!   default: true                     # taken where no config is named
//!   data_dir: chat                    # optional: the folder that patterns are relative to
//!   data_files:                       # a pattern, a list of them, or patterns by split
//!   - split: train
//!     path: ["train-*.parquet", "more/*.jsonl"]
//! ```

use serde_json::{Map, Value};

/// The configs that a card names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    /// At least one.
    pub configs: Vec<CardConfig>,
}

/// An entry of `configs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CardConfig {
    pub name: String,
    /// Whether the card says `default: true`.
    pub default: bool,
    /// Folder in which its files are; empty: the top.
    pub dir: String,
    /// Patterns by split; none: splits follow from the names of the files.
    pub splits: Option<Vec<(String, Vec<String>)>>,
}

/// Configs, and patterns in all, that are read of a card.
const MOST: usize = 20_000;

impl Card {
    /// The configs in the text of a README.md; none if it names none.
    ///
    /// # Errors
    /// Why the configs cannot be understood.
    pub(crate) fn parse(readme: &str) -> Result<Option<Card>, String> {
        let Some(yaml) = front_matter(readme) else { return Ok(None) };
        // Other text between two lines of dashes is nobody's configuration.
        if !yaml.lines().any(|l| l.trim_start().starts_with("configs")) {
            return Ok(None);
        }
        let value: Value = serde_saphyr::from_str_with_options(&yaml, options())
            .map_err(|e| format!("its front matter is not readable as YAML: {}", first_line(&e)))?;
        let Some(list) = value.get("configs").filter(|v| !v.is_null()) else { return Ok(None) };
        let wrong = "configs is no list of entries with config_name and data_files";
        let list = list.as_array().ok_or(wrong)?;
        let mut configs: Vec<CardConfig> = Vec::new();
        for entry in list {
            configs.push(CardConfig::of(entry.as_object().ok_or(wrong)?)?);
        }
        let mut names: Vec<&str> = configs.iter().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("two configs are named {:?}", w[0]));
        }
        let patterns = configs.iter().flat_map(|c| c.splits.iter().flatten()).map(|s| s.1.len());
        if configs.len() > MOST || patterns.sum::<usize>() > MOST {
            return Err(format!("it names more than {MOST} configs or patterns"));
        }
        Ok((!configs.is_empty()).then_some(Card { configs }))
    }
}

impl CardConfig {
    /// A pattern of this config, from the top of the dataset on.
    pub(crate) fn path(&self, pattern: &str) -> String {
        match self.dir.as_str() {
            "" => pattern.to_string(),
            dir => format!("{dir}/{pattern}"),
        }
    }

    fn of(entry: &Map<String, Value>) -> Result<CardConfig, String> {
        let name = match entry.get("config_name") {
            None => "default".to_string(),
            Some(v) => scalar(v).ok_or("a config_name is no text")?,
        };
        let wrong = |what: &str| format!("config {name:?}: {what}");
        let dir = match entry.get("data_dir").filter(|v| !v.is_null()) {
            None => String::new(),
            Some(v) => {
                let dir = v.as_str().ok_or_else(|| wrong("data_dir is no text"))?;
                relative(dir).map_err(|e| wrong(&e))?.trim_end_matches('/').to_string()
            }
        };
        let patterns = |v: &Value| -> Result<Vec<String>, String> {
            let one = |v: &Value| {
                let text = v.as_str().ok_or_else(|| wrong("a path in data_files is no text"))?;
                relative(text).map_err(|e| wrong(&e))
            };
            match v {
                Value::Array(list) => list.iter().map(one).collect(),
                v => Ok(vec![one(v)?]),
            }
        };
        let train = |v: &Value| Ok::<_, String>(vec![("train".to_string(), patterns(v)?)]);
        let splits = match entry.get("data_files").filter(|v| !v.is_null()) {
            None => None,
            Some(Value::Object(map)) => {
                let each = map.iter().map(|(split, v)| Ok((split.clone(), patterns(v)?)));
                Some(each.collect::<Result<Vec<_>, String>>()?)
            }
            Some(Value::Array(list)) if list.iter().all(Value::is_object) => {
                let mut splits: Vec<(String, Vec<String>)> = Vec::new();
                for e in list {
                    let expected = || wrong("an entry of data_files lacks split or path");
                    let split = e.get("split").and_then(scalar).ok_or_else(expected)?;
                    let paths = patterns(e.get("path").ok_or_else(expected)?)?;
                    match splits.iter_mut().find(|s| s.0 == split) {
                        Some(s) => s.1.extend(paths),
                        None => splits.push((split, paths)),
                    }
                }
                Some(splits)
            }
            Some(v) => Some(train(v)?),
        };
        let default = entry.get("default").and_then(Value::as_bool).unwrap_or(false);
        Ok(CardConfig { name, default, dir, splits })
    }
}

/// `y`, `no` and `on` are names; the front matter of a dataset with hundreds of configs fits.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: 1_000_000, max_events: 4_000_000 },
    }
}

/// The text of a name, which YAML may have taken for a number.
fn scalar(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

/// A pattern that stays inside the dataset, without `./` before it.
fn relative(pattern: &str) -> Result<String, String> {
    let mut bare = pattern.trim();
    while let Some(rest) = bare.strip_prefix("./") {
        bare = rest;
    }
    if bare.contains("://") || bare.starts_with('/') || bare.split('/').any(|p| p == "..") {
        return Err(format!("{pattern:?} is outside of the dataset, which is not read"));
    }
    Ok(if bare == "." { String::new() } else { bare.to_string() })
}

/// The text between a first line of three dashes and the next such line.
fn front_matter(readme: &str) -> Option<String> {
    let readme = readme.strip_prefix('\u{feff}').unwrap_or(readme);
    let mut lines = readme.lines();
    (lines.next()?.trim_end() == "---").then_some(())?;
    let mut yaml = String::new();
    for line in lines {
        if line.trim_end() == "---" {
            return Some(yaml);
        }
        yaml.push_str(line);
        yaml.push('\n');
    }
    None
}

fn first_line(e: &impl std::fmt::Display) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(yaml: &str) -> Result<Option<Card>, String> {
        Card::parse(&format!("---\nlicense: mit\n{yaml}\n---\n# A dataset\n"))
    }

    #[test]
    fn data_files_in_every_form() {
        let patterns = |yaml: &str| {
            let configs = card(yaml).unwrap().unwrap().configs;
            assert_eq!(configs.len(), 1);
            configs[0].splits.clone()
        };
        let split = |name: &str, paths: &[&str]| {
            (name.to_string(), paths.iter().map(|p| p.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(
            patterns("configs:\n- config_name: a\n  data_files: ./x.jsonl"),
            Some(vec![split("train", &["x.jsonl"])])
        );
        assert_eq!(
            patterns("configs:\n- data_files: [x.jsonl, \"y/*\"]"),
            Some(vec![split("train", &["x.jsonl", "y/*"])])
        );
        assert_eq!(
            patterns(
                "configs:\n- config_name: a\n  data_files:\n  - split: train\n    path: x\n  - split: test\n    path: [y, z]"
            ),
            Some(vec![split("train", &["x"]), split("test", &["y", "z"])])
        );
        assert_eq!(
            patterns("configs:\n- config_name: a\n  data_files: {train: x, dev: [y]}"),
            Some(vec![split("train", &["x"]), split("dev", &["y"])])
        );
        assert_eq!(patterns("configs:\n- config_name: a\n  data_dir: sub/"), None);
    }

    #[test]
    fn names_and_defaults() {
        let yaml =
            "configs:\n- config_name: 2024\n  data_dir: x\n- config_name: b\n  default: true";
        let configs = card(yaml).unwrap().unwrap().configs;
        assert_eq!((&*configs[0].name, configs[0].default, &*configs[0].dir), ("2024", false, "x"));
        assert_eq!((&*configs[1].name, configs[1].default), ("b", true));
        for none in ["", "tags: [a]", "configs:", "configs: []"] {
            assert_eq!(card(none).unwrap(), None, "{none}");
        }
        assert_eq!(Card::parse("# configs:\n---\nconfigs: 5\n---\n").unwrap(), None);
        assert_eq!(Card::parse("---\nconfigs: 5\n").unwrap(), None);
    }

    proptest::proptest! {
        /// No text of a README.md makes the program fail, and no pattern leads out of the dataset.
        #[test]
        fn foreign_text(text in "\\PC{0,60}", yaml in "[a-z:\\-{}\\[\\]&*!|>/. \n]{0,60}") {
            for text in [&text, &yaml, &format!("configs:\n- {yaml}"), &format!("configs:\n- data_files: {yaml}")] {
                let Ok(Some(card)) = card(text) else { continue };
                for c in card.configs {
                    let patterns = c.splits.iter().flatten().flat_map(|s| &s.1);
                    for path in patterns.map(|p| c.path(p)).chain([c.dir.clone()]) {
                        assert!(!path.starts_with('/') && path.split('/').all(|p| p != ".."));
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_understood_is_said() {
        for (yaml, says) in [
            ("configs: 5", "no list"),
            ("configs: [a]", "no list"),
            ("configs:\n- config_name: a\n- config_name: a", "two configs"),
            ("configs:\n- data_files: ../x", "outside of the dataset"),
            ("configs:\n- data_files: https://h/x", "outside of the dataset"),
            ("configs:\n- data_files: 5", "no text"),
            ("configs:\n- data_files:\n  - split: a", "lacks split or path"),
            ("configs: [", "not readable as YAML"),
        ] {
            let e = card(yaml).unwrap_err();
            assert!(e.contains(says), "{yaml}: {e}");
        }
    }
}
