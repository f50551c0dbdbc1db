//! Recipes: which sources in which shares, in a YAML file.
//!
//! In: a file, or the name of a built-in. Out: [`Recipe`]. Unknown keys are refused. Paths in a
//! file are relative to it.
//!
//! ```yaml
//! name: mine
//! dataset: ORG/NAME            # for sources that name none themselves; or give them `input:` files
//! settings: { over_long: split, seq_len: 512 }        # the command line goes before these
//! sources:
//!   - { name: chat, files: ["SFT/chat/**"], weight: 0.3 }
//!   - { name: math, input: [math.jsonl], weight: 0.7, max_tokens: 1000000, columns: { prompt: problem, completion: solution } }
//! phases:                      # optional; shares of --max-tokens, each with its own weights
//!   - { tokens: 0.25, weights: { chat: 1 } }
//!   - { tokens: 0.75, weights: { chat: 0.3, math: 0.7 } }
//! on_exhausted: stop           # or continue with the others
//! ```

use crate::config::settings::Settings;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const NEMOTRON: &str = include_str!("../../../datasets/recipes/nemotron.yaml");

/// A recipe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// Hub dataset of sources that name none.
    pub dataset: Option<String>,
    /// Its revision.
    pub revision: Option<String>,
    /// Overrides of [`Settings`].
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// Sources.
    pub sources: Vec<RecipeSource>,
    /// Phases of a curriculum.
    pub phases: Vec<Phase>,
    /// What to do when a source has no more rows.
    pub on_exhausted: OnExhausted,
}

/// One source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeSource {
    /// Its name in the manifest.
    pub name: String,
    /// Local files or folders.
    #[serde(default)]
    pub input: Vec<PathBuf>,
    /// Hub dataset.
    #[serde(default)]
    pub dataset: Option<String>,
    /// Its revision.
    #[serde(default)]
    pub revision: Option<String>,
    /// Splits.
    #[serde(default)]
    pub split: Vec<String>,
    /// Globs.
    #[serde(default)]
    pub files: Vec<String>,
    /// Its share of tokens, relative to the others'.
    #[serde(default = "one")]
    pub weight: f64,
    /// At most so many document tokens.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// Licence of rows that name none.
    #[serde(default)]
    pub licence: Option<String>,
    /// Columns under other names: ours → the file's.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
}

fn one() -> f64 {
    1.0
}

/// A part of the run with weights of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Its share of `max_tokens`.
    pub tokens: f64,
    /// Weights by source name; sources not named rest.
    pub weights: BTreeMap<String, f64>,
}

/// When a source has no more rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExhausted {
    /// The run ends, and shares are as asked for.
    #[default]
    Stop,
    /// The others go on.
    Continue,
}

impl Recipe {
    /// The recipe in a file, or a built-in one.
    pub fn load(name: &Path) -> Result<Recipe> {
        let text = match std::fs::read_to_string(name) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && name == Path::new("nemotron") => {
                NEMOTRON.to_string()
            }
            Err(e) => return Err(Error::io("reading recipe", name)(e)),
        };
        let mut r: Recipe = serde_saphyr::from_str(&text)
            .map_err(|e| Error::Usage(format!("recipe {}: {e}", name.display())))?;
        let base = name.parent().unwrap_or(Path::new("")).to_path_buf();
        for s in &mut r.sources {
            for p in &mut s.input {
                if p.is_relative() {
                    *p = base.join(&p);
                }
            }
        }
        r.check().map_err(|m| Error::Usage(format!("recipe {}: {m}", name.display())))?;
        Ok(r)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.sources.is_empty() {
            return Err("names no sources".to_string());
        }
        let mut names: Vec<&str> = self.sources.iter().map(|s| s.name.as_str()).collect();
        names.sort();
        if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("two sources are named {:?}", w[0]));
        }
        let good = |w: f64| w.is_finite() && w >= 0.0;
        for s in &self.sources {
            if !good(s.weight) {
                return Err(format!(
                    "source {:?}: weight {} must be a number from 0 up",
                    s.name, s.weight
                ));
            }
            if s.input.is_empty() == (s.dataset.is_none() && self.dataset.is_none()) {
                return Err(format!(
                    "source {:?} needs either `input` files or a `dataset`",
                    s.name
                ));
            }
        }
        for p in &self.phases {
            if !(p.tokens > 0.0 && p.tokens <= 1.0) {
                return Err(format!(
                    "a phase has tokens {}, expected a share of the run between 0 and 1",
                    p.tokens
                ));
            }
            for (k, w) in &p.weights {
                if !names.contains(&k.as_str()) || !good(*w) {
                    return Err(format!(
                        "a phase gives weight {w} to {k:?}; sources are {names:?}"
                    ));
                }
            }
            if p.weights.values().sum::<f64>() <= 0.0 {
                return Err("a phase gives no source any weight".to_string());
            }
        }
        let total: f64 = self.phases.iter().map(|p| p.tokens).sum();
        if !self.phases.is_empty() && (total - 1.0).abs() > 1e-6 {
            return Err(format!("the phases' shares sum to {total}, expected 1"));
        }
        if self.phases.is_empty() && self.sources.iter().map(|s| s.weight).sum::<f64>() <= 0.0 {
            return Err("no source has any weight".to_string());
        }
        Ok(())
    }

    /// For the manifest: file names without the folders of this machine.
    pub fn described(&self) -> serde_json::Value {
        let mut r = self.clone();
        for p in r.sources.iter_mut().flat_map(|s| &mut s.input) {
            *p = p.file_name().map(PathBuf::from).unwrap_or_default();
        }
        serde_json::to_value(r).unwrap_or_default()
    }

    /// The recipe's settings under those typed: what differs from the defaults was typed and goes
    /// first.
    pub fn settings(&self, typed: Settings) -> Result<Settings> {
        let (defaults, typed) = (Settings::default().to_json(), typed.to_json());
        let mut merged = typed.clone();
        for (k, v) in &self.settings {
            if defaults.get(k).is_none() {
                let known: Vec<&String> =
                    defaults.as_object().map(|o| o.keys().collect()).unwrap_or_default();
                return Err(Error::Usage(format!(
                    "recipe {}: unknown setting {k:?}; there are {known:?}",
                    self.name
                )));
            }
            if typed.get(k) == defaults.get(k) {
                merged[k] = v.clone();
            }
        }
        let s: Settings = serde_json::from_value(merged)
            .map_err(|e| Error::Usage(format!("recipe {}: {e}", self.name)))?;
        s.check()?;
        Ok(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.yaml");
        std::fs::write(&path, text).unwrap();
        Recipe::load(&path)
    }

    #[test]
    fn built_in_and_checks() {
        let r = Recipe::load(Path::new("nemotron")).unwrap();
        assert_eq!(r.sources.len(), 5);
        assert_eq!(
            r.settings(Settings::default()).unwrap().over_long,
            crate::config::policies::OverLong::Split
        );
        let typed =
            Settings { over_long: crate::config::policies::OverLong::Drop, ..Default::default() };
        assert_eq!(r.settings(typed).unwrap().over_long, crate::config::policies::OverLong::Drop);
        for (text, word) in [
            ("sources: []", "no sources"),
            ("sources: [{name: a}]", "needs either"),
            ("sources: [{name: a, input: [x]}, {name: a, input: [y]}]", "two sources"),
            ("sources: [{name: a, input: [x], wieght: 2}]", "wieght"),
            (
                "sources: [{name: a, input: [x]}]\nphases: [{tokens: 0.5, weights: {a: 1}}]",
                "sum to 0.5",
            ),
            ("sources: [{name: a, input: [x]}]\nphases: [{tokens: 1.0, weights: {b: 1}}]", "\"b\""),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        }
        let e = parse("sources: [{name: a, input: [x]}]\nsettings: {seqlen: 3}")
            .unwrap()
            .settings(Settings::default())
            .unwrap_err();
        assert!(e.to_string().contains("seqlen"));
    }
}
