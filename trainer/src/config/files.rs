//! Configuration files: those of the folder given as `--config-dir`, else those of the repository's
//! `configs/` tree, which is built into the binary.
//!
//! In: a path within the tree, for example `model/qwen3_4b.yaml`. Out: its text, and the name that
//! errors use for it.

use std::path::{Path, PathBuf};

use super::error::{ConfigError, nearest};

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../configs/", $name)))),*]
    };
}

/// The files of `configs/` when this binary was built: path within the tree, text.
pub(super) const BUILT_IN: &[(&str, &str)] = built_in![
    "config.yaml",
    "conversion/finetune.yaml",
    "conversion/paper_1_5b.yaml",
    "conversion/paper_7b.yaml",
    "conversion/sample_ar.yaml",
    "conversion/sample_diffusion.yaml",
    "conversion/sdar.yaml",
    "conversion/smoke.yaml",
    "data/packed.yaml",
    "launch/dlm_prep.yaml",
    "launch/dlm_train.yaml",
    "launch/smoke.yaml",
    "model/bitnet_2b.yaml",
    "model/qwen2_5_0_5b.yaml",
    "model/qwen2_5_1_5b.yaml",
    "model/qwen3_0_6b.yaml",
    "model/qwen3_4b.yaml",
    "model/sample.json",
    "model/sample.yaml",
    "model/smollm2_135m.yaml",
    "optim/adamw.yaml",
    "optim/muon.yaml",
];

/// The text of a file.
#[derive(Debug, Clone)]
pub(super) struct File {
    /// Name of the file in errors.
    pub origin: String,
    pub text: String,
}

/// The configuration tree: a folder of the user's, if any, then the built-in files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: Option<PathBuf>,
}

/// A built-in file by its path, with or without the leading `configs/`.
pub(crate) fn built_in(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("configs/").unwrap_or(path);
    BUILT_IN.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
}

impl Files {
    /// The tree in which `dir` has priority; a folder with neither a config.yaml nor a known group
    /// is refused.
    pub(super) fn new(dir: Option<&Path>) -> Result<Self, ConfigError> {
        if let Some(dir) = dir {
            let refuse =
                |problem: &str| ConfigError::Dir { path: dir.into(), problem: problem.into() };
            if !dir.is_dir() {
                return Err(refuse("not a folder"));
            }
            let known = BUILT_IN
                .iter()
                .filter_map(|(name, _)| name.split_once('/'))
                .any(|(group, _)| dir.join(group).is_dir());
            if !known && !dir.join("config.yaml").is_file() {
                return Err(refuse(
                    "holds neither config.yaml nor a group such as model/ or conversion/",
                ));
            }
        }
        Ok(Self { dir: dir.map(Into::into) })
    }

    /// The file at `path` within the tree; `None` where neither place has it.
    pub(super) fn read(&self, path: &str) -> Result<Option<File>, ConfigError> {
        if let Some(dir) = &self.dir {
            let file = dir.join(path);
            match std::fs::read_to_string(&file) {
                Ok(text) => {
                    return Ok(Some(File { origin: file.display().to_string(), text }));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(ConfigError::Io { path: file, source });
                }
            }
        }
        Ok(built_in(path)
            .map(|text| File { origin: format!("configs/{path} (built in)"), text: text.into() }))
    }

    /// The choices of a group, sorted: the names of its YAML files in both places.
    pub(super) fn choices(&self, group: &str) -> Vec<String> {
        let built_in =
            BUILT_IN.iter().filter_map(|(name, _)| name.strip_prefix(group)?.strip_prefix('/'));
        let mut names: Vec<String> =
            built_in.filter_map(|name| name.strip_suffix(".yaml")).map(Into::into).collect();
        if let Some(entries) =
            self.dir.as_ref().and_then(|dir| std::fs::read_dir(dir.join(group)).ok())
        {
            let listed = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            names.extend(listed.filter_map(|name| name.strip_suffix(".yaml").map(Into::into)));
        }
        names.sort();
        names.dedup();
        names
    }

    /// The file of `group=choice`, which was written in `origin`.
    pub(super) fn choice(
        &self,
        group: &str,
        choice: &str,
        origin: &str,
    ) -> Result<File, ConfigError> {
        let plain = choice.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
            && !choice.starts_with('.');
        let file = if plain { self.read(&format!("{group}/{choice}.yaml"))? } else { None };
        file.ok_or_else(|| {
            let known = self.choices(group);
            ConfigError::UnknownChoice {
                group: group.into(),
                choice: choice.into(),
                origin: origin.into(),
                nearest: nearest(choice, known.iter().map(String::as_str)),
                known,
            }
        })
    }
}
