//! Configuration of a training run.
//!
//! In: the YAML tree `configs/` (built in, or in front of it a folder of the user's) and overrides
//! `group=choice`, `section.key=value`. Out: a checked [`Config`]; or a [`ConfigError`] that names
//! file, key, what was found, what was expected and the nearest known key.
//!
//! `kind.rs` kinds of values → `schema.rs` the keys → `files.rs` where text comes from → `node.rs`
//! values with their place → `compose.rs` defaults list, groups, overrides → here: types, ranges,
//! and back to YAML.

mod compose;
mod error;
mod files;
mod kind;
mod node;
mod schema;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::rc::Rc;

pub use error::{ConfigError, nearest};
pub use files::{BUILT_IN, built_in};
pub use kind::{Field, Schema as ConfigSchema, ValueKind};
pub use node::parse_yaml;
pub use schema::*;

use files::Files;
use node::Node;

impl Config {
    /// Composes the configuration: files of `config_dir` in front of the built-in ones, then
    /// `overrides`, then checks.
    pub fn load(config_dir: Option<&Path>, overrides: &[String]) -> Result<Config, ConfigError> {
        let kind = Config::kind();
        let composed = compose::compose(&Files::new(config_dir)?, overrides, &kind)?;
        Config::from_tree(composed.tree, &kind, &composed.main)
    }

    /// Reads back what [`Config::to_yaml`] wrote; `origin` names the file in errors.
    pub fn from_yaml(text: &str, origin: &str) -> Result<Config, ConfigError> {
        let value = parse_yaml(text)
            .map_err(|problem| ConfigError::Yaml { origin: origin.into(), problem })?;
        let origin: Rc<str> = origin.into();
        Config::from_tree(Node::new(value, &origin), &Config::kind(), &origin)
    }

    /// The whole configuration as YAML, every key with its value, sections and keys in schema
    /// order.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_saphyr::to_string(self).map_err(|error| ConfigError::Yaml {
            origin: "configuration".into(),
            problem: error.to_string(),
        })
    }

    /// Every key with its documentation, in schema order.
    pub fn keys() -> Vec<(String, String, String)> {
        let kind = Config::kind();
        let entry = |(key, field): (String, &Field)| {
            let doc: Vec<_> = field.doc.iter().map(|line| line.trim()).collect();
            (key, field.kind.describe(), doc.join(" "))
        };
        kind.keys().into_iter().map(entry).collect()
    }

    /// The text of `source.config`: a file, or a built-in one under the same name.
    pub fn source_config(&self) -> Result<String, ConfigError> {
        let missing = || ConfigError::Value {
            key: "source.config",
            found: "null".into(),
            expected: "the path of a config.json with the model's shapes".into(),
        };
        let path = self.source.config.as_ref().ok_or_else(missing)?;
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(text),
            Err(source) => match path.to_str().and_then(built_in) {
                Some(text) if source.kind() == std::io::ErrorKind::NotFound => Ok(text.into()),
                None if source.kind() == std::io::ErrorKind::NotFound => Err(ConfigError::Value {
                    key: "source.config",
                    found: path.display().to_string(),
                    expected: "the path of a config.json with the model's shapes; there is no such file, nor a built-in one of that name"
                        .into(),
                }),
                _ => Err(ConfigError::Io { path: path.clone(), source }),
            },
        }
    }

    fn from_tree(tree: Node, kind: &ValueKind, main: &str) -> Result<Config, ConfigError> {
        let keys: Vec<String> = kind.keys().into_iter().map(|(key, _)| key).collect();
        // A reference may fail only because a key it needs is wrong; that key is then the better
        // thing to name.
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

    /// Values of the right type that cannot be meant, alone or together.
    fn check_ranges(&self) -> Result<(), ConfigError> {
        let (source, conversion, optim, train) =
            (&self.source, &self.conversion, &self.optim, &self.train);
        let name = &self.model.name;
        ensure(
            "model.name",
            name,
            !name.is_empty() && !name.contains(['/', '\\']),
            "a name without slashes",
        )?;
        match source.init {
            Init::Pretrained => ensure_set(
                "source.path",
                &source.path,
                "a folder or hub id, or source.init=random",
            )?,
            Init::Random => ensure_set(
                "source.config",
                &source.config,
                "a config.json, since source.init is random",
            )?,
        }
        ensure(
            "conversion.total_tokens",
            conversion.total_tokens,
            conversion.total_tokens > 0,
            "1 or more",
        )?;
        if let Some(bd_size) = conversion.bd_size {
            ensure(
                "conversion.bd_size",
                bd_size,
                bd_size > 0,
                "1 or more, or null for the dataset's",
            )?;
        }
        let eps = conversion.noise_eps;
        ensure("conversion.noise_eps", eps, (0.0..1.0).contains(&eps), "at least 0 and below 1")?;
        for (key, rate) in
            [("optim.lr", optim.lr), ("optim.muon_lr", optim.muon_lr), ("optim.eps", optim.eps)]
        {
            ensure(key, rate, rate > 0.0, "above 0")?;
        }
        let (below_one, share) = ("at least 0 and below 1", "between 0 and 1");
        for (key, decay) in [
            ("optim.beta1", optim.beta1),
            ("optim.beta2", optim.beta2),
            ("optim.muon_momentum", optim.muon_momentum),
            ("optim.zclip.alpha", optim.zclip.alpha),
        ] {
            ensure(key, decay, (0.0..1.0).contains(&decay), below_one)?;
        }
        for (key, part) in [
            ("optim.warmup_ratio", optim.warmup_ratio),
            ("optim.min_lr_ratio", optim.min_lr_ratio),
            ("optim.decay_ratio", optim.decay_ratio),
        ] {
            ensure(key, part, (0.0..=1.0).contains(&part), share)?;
        }
        let both = optim.warmup_ratio + optim.decay_ratio;
        let fits = optim.schedule != Schedule::Wsd || both <= 1.0;
        ensure(
            "optim.decay_ratio",
            optim.decay_ratio,
            fits,
            "at most 1 - optim.warmup_ratio with optim.schedule=wsd",
        )?;
        ensure("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0.0, "0 or more")?;
        if let Some(clip) = optim.clip_norm {
            ensure("optim.clip_norm", clip, clip > 0.0, "above 0, or null for no clipping")?;
        }
        ensure("optim.zclip.z", optim.zclip.z, optim.zclip.z > 0.0, "above 0")?;
        ensure("train.batch_rows", train.batch_rows, train.batch_rows > 0, "1 or more")?;
        if let Some(micro) = train.micro_batch_rows {
            let divides = micro > 0 && train.batch_rows.is_multiple_of(micro);
            let expected = format!("a divisor of train.batch_rows, which is {}", train.batch_rows);
            ensure("train.micro_batch_rows", micro, divides, &expected)?;
        }
        if let Some(steps) = train.max_steps {
            ensure("train.max_steps", steps, steps > 0, "1 or more, or null")?;
        }
        if let Some(factor) = train.spike_factor {
            ensure("train.spike_factor", factor, factor > 1.0, "above 1, or null for off")?;
        }
        ensure("train.loss_chunk", train.loss_chunk, train.loss_chunk > 0, "1 or more")?;
        ensure("train.log_every", train.log_every, train.log_every > 0, "1 or more")?;
        ensure(
            "train.eval_rows",
            train.eval_rows,
            train.eval_every == 0 || train.eval_rows > 0,
            "1 or more with eval_every",
        )?;
        ensure(
            "train.keep_checkpoints",
            train.keep_checkpoints,
            train.keep_checkpoints > 0,
            "1 or more",
        )?;
        ensure("train.prefetch", train.prefetch, train.prefetch > 0, "1 or more")
    }
}

fn ensure(
    key: &'static str,
    found: impl std::fmt::Display,
    holds: bool,
    expected: &str,
) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::Value { key, found: found.to_string(), expected: expected.into() })
    }
}

fn ensure_set<T>(key: &'static str, value: &Option<T>, expected: &str) -> Result<(), ConfigError> {
    ensure(key, "null", value.is_some(), expected)
}
