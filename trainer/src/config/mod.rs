//! Configuration of a training run.
//!
//! In: the YAML tree `configs/` (built in; a folder of the user's has priority) and overrides
//! `group=choice`, `section.key=value`. Out: a checked [`Config`], or a [`ConfigError`] that names
//! file and key, the value, what was expected and the nearest known key.
//!
//! `kind.rs`: the types of values; `schema.rs`: the keys; `files.rs`: reading files; `node.rs`:
//! values with the place where they were written; `compose.rs`: defaults list, groups, overrides;
//! `ranges.rs`: limits of values; here: loading, and back to YAML.

mod choices;
mod compose;
mod error;
mod files;
mod kind;
mod node;
mod ranges;
mod schema;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::rc::Rc;

pub(crate) use choices::*;
pub use error::ConfigError;
pub(crate) use files::built_in;
pub(crate) use kind::{Schema as ConfigSchema, ValueKind};
pub(crate) use node::parse_yaml;
pub(crate) use schema::*;

use files::Files;
use node::Node;

impl Config {
    /// Composes and checks the configuration. Files of `config_dir` have priority over the built-in
    /// ones, `overrides` over all files.
    pub(crate) fn load(
        config_dir: Option<&Path>,
        overrides: &[String],
    ) -> Result<Config, ConfigError> {
        let kind = Config::kind();
        let composed = compose::compose(&Files::new(config_dir)?, overrides, &kind)?;
        Config::from_tree(composed.tree, &kind, &composed.main_origin)
    }

    /// Reads back what [`Config::to_yaml`] wrote, in this version or an earlier one; `origin` names
    /// the file in errors.
    pub(crate) fn from_yaml(text: &str, origin: &str) -> Result<Config, ConfigError> {
        let mut value = parse_yaml(text)
            .map_err(|problem| ConfigError::Yaml { origin: origin.into(), problem })?;
        for (section, key, usual) in ADDED_KEYS {
            if let Some(entries) = value.get_mut(section).and_then(|v| v.as_object_mut()) {
                entries.entry(*key).or_insert_with(|| match *usual {
                    "null" => serde_json::Value::Null,
                    usual => usual.into(),
                });
            }
        }
        let origin: Rc<str> = origin.into();
        Config::from_tree(Node::new(value, &origin), &Config::kind(), &origin)
    }

    /// The whole configuration as YAML, every key with its value, sections and keys in schema
    /// order.
    pub(crate) fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_saphyr::to_string(self).map_err(|error| ConfigError::Yaml {
            origin: "configuration".into(),
            problem: error.to_string(),
        })
    }

    /// Every key with the values it takes and its documentation, in schema order.
    #[cfg(test)]
    pub(crate) fn keys() -> Vec<(String, String, String)> {
        let kind = Config::kind();
        let entry = |(key, field): (String, &kind::Field)| {
            let doc: Vec<_> = field.doc.iter().map(|line| line.trim()).collect();
            (key, field.kind.describe(), doc.join(" "))
        };
        kind.keys().into_iter().map(entry).collect()
    }

    /// The text of `source.config`: of that file, else of the built-in file of the same path.
    pub(crate) fn source_config(&self) -> Result<String, ConfigError> {
        let missing = || ConfigError::Value {
            key: "source.config",
            value: "null".into(),
            expected: "the path of a config.json with the model's shapes".into(),
        };
        let path = self.source.config.as_ref().ok_or_else(missing)?;
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(text),
            Err(source) => match path.to_str().and_then(built_in) {
                Some(text) if source.kind() == std::io::ErrorKind::NotFound => Ok(text.into()),
                None if source.kind() == std::io::ErrorKind::NotFound => Err(ConfigError::Value {
                    key: "source.config",
                    value: path.display().to_string(),
                    expected: "the path of a config.json with the model's shapes; there is no such file, nor a built-in one of that name"
                        .into(),
                }),
                _ => Err(ConfigError::Io { path: path.clone(), source }),
            },
        }
    }

    fn from_tree(tree: Node, kind: &ValueKind, main: &str) -> Result<Config, ConfigError> {
        let keys: Vec<String> = kind.keys().into_iter().map(|(key, _)| key).collect();
        // A reference may fail because the key it names is misspelt elsewhere; the error then names
        // that key.
        let mut tree = match tree.interpolated(&keys) {
            Ok(tree) => tree,
            Err(error) => return Err(tree.clone().check(kind, main).err().unwrap_or(error)),
        };
        tree.check(kind, main)?;
        let config: Config = serde_json::from_value(tree.to_value()).map_err(|error| {
            ConfigError::Yaml { origin: main.into(), problem: error.to_string() }
        })?;
        config.check_ranges()?;
        Ok(config)
    }
}
