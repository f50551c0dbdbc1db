//! Recipes: a YAML file that names sources, their shares and settings.
//!
//! In: a file, or the name of a built-in recipe. Out: [`Recipe`]. Unknown keys are errors. Relative
//! paths are relative to the recipe's file.
//!
//! ```yaml
//! name: mine
//! dataset: ORG/NAME            # of sources that name no dataset and no `input` files
//! settings: { over_long: split, seq_len: 512 }        # the command line comes before these
//! sources:
//!   - { name: chat, files: ["SFT/chat/**"], weight: 0.3 }
//!   - { name: math, input: [math.jsonl], weight: 0.7, max_tokens: 1000000, columns: { prompt: problem, completion: solution } }
//! phases:                      # optional; shares of --max-tokens, each with its own weights
//!   - { tokens: 0.25, weights: { chat: 1 } }
//!   - { tokens: 0.75, weights: { chat: 0.3, math: 0.7 } }
//! on_exhausted: stop           # or continue with the other sources
//! ```

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const NEMOTRON: &str = include_str!("../../../datasets/recipes/nemotron.yaml");

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Recipe {
    /// Name, for error messages and the manifest.
    pub name: String,
    /// Hub dataset of sources that name none.
    pub dataset: Option<String>,
    /// Branch, tag or commit of datasets whose source names none.
    pub revision: Option<String>,
    /// Values for fields of [`Settings`](crate::config::settings::Settings).
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// The sources, in the order in which ties between them are decided.
    pub sources: Vec<RecipeSource>,
    /// Phases of a curriculum, in order; none: the sources' weights hold for the whole run.
    pub phases: Vec<Phase>,
    /// What to do when a source has no more rows.
    pub on_exhausted: OnExhausted,
}

/// One source of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecipeSource {
    /// Name in the manifest.
    pub name: String,
    /// Local files or folders.
    #[serde(default)]
    pub input: Vec<PathBuf>,
    /// Hub dataset, `ORG/NAME`.
    #[serde(default)]
    pub dataset: Option<String>,
    /// Branch, tag or commit of the dataset.
    #[serde(default)]
    pub revision: Option<String>,
    /// Config of the dataset or of folders, as their card names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Splits of the dataset or of folders; none: `train`.
    #[serde(default)]
    pub split: Vec<String>,
    /// Files of the dataset or of folders whose path matches one of these globs, without regard to
    /// configs and splits.
    #[serde(default)]
    pub files: Vec<String>,
    /// Share of document tokens, relative to the other sources' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// The source ends after this many document tokens.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// Licence of rows that name none.
    #[serde(default)]
    pub licence: Option<String>,
    /// Renamed columns: name used by this program → name in the file.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
}

fn one() -> f64 {
    1.0
}

/// A part of the run with its own weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    /// Its share of `max_tokens`, from 0 to 1.
    pub tokens: f64,
    /// Weights by source name; no rows are taken from the other sources.
    pub weights: BTreeMap<String, f64>,
}

/// What happens when a source has no more rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExhausted {
    /// The run ends, so that the shares are as asked for.
    #[default]
    Stop,
    /// The run continues with the other sources.
    Continue,
}

impl Recipe {
    /// Reads the recipe in a file; `nemotron` is the built-in one if there is no file of that name.
    pub(crate) fn load(name: &Path) -> Result<Recipe> {
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
                if p.is_relative() && !p.to_str().is_some_and(|p| p.contains("://")) {
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
        let valid = |w: f64| w.is_finite() && w >= 0.0;
        for s in &self.sources {
            if !valid(s.weight) {
                return Err(format!(
                    "source {:?}: weight {} must be 0 or a positive number",
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
                if !names.contains(&k.as_str()) || !valid(*w) {
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

    /// The recipe as JSON for the manifest: file names without the folders of this machine.
    pub(crate) fn to_manifest_json(&self) -> serde_json::Value {
        let mut r = self.clone();
        for p in r.sources.iter_mut().flat_map(|s| &mut s.input) {
            *p = p.file_name().map(PathBuf::from).unwrap_or_default();
        }
        serde_json::to_value(r).unwrap_or_default()
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
        assert_eq!(r.settings["over_long"], "split");
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
    }
}
