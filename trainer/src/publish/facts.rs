//! What is known of an exported folder: its own files, the run's configuration, the dataset's
//! manifest, answers to tasks. Everything but the folder's own files may be missing.

use std::path::{Path, PathBuf};

use dlm_datasets::Manifest;
use serde_json::Value;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::json;

/// Facts for a model card.
pub(crate) struct Facts {
    /// config.json, null in a folder without one.
    pub config: Value,
    /// dlm_config.json.
    pub record: Value,
    /// Names of the files in the folder.
    pub files: Vec<String>,
    /// The run's configuration.
    pub run: Option<Config>,
    /// The dataset's manifest, if it is that of the recorded fingerprint.
    pub manifest: Option<Manifest>,
    /// results.json of `dlm-train eval --tasks`.
    pub results: Option<Value>,
    /// What the source's card says of its licence.
    pub source_licence: Option<String>,
}

impl Facts {
    /// Of the export in `folder`, made from the run in `run` (the same folder where the export is
    /// the run's own).
    pub(crate) fn read(folder: &Path, run: &Path, data: Option<&Path>) -> Result<Facts> {
        let marker = folder.join("dlm_config.json");
        let Some(record) = json::read_if_present::<Value>(&marker, "valid JSON")? else {
            return Err(Error::Usage(format!(
                "{}: has no dlm_config.json, so it is no whole export",
                folder.display()
            )));
        };
        let config = json::read_if_present(&folder.join("config.json"), "valid JSON")?;
        let text = std::fs::read_to_string(run.join("config.yaml")).ok();
        let run_config = text.and_then(|text| Config::from_yaml(&text, "config.yaml").ok());
        let data = data.or(run_config.as_ref().map(|c| c.data.dir.as_path()));
        let of_run = |(m, hash): (Manifest, String)| {
            (record["data_fingerprint"].as_str() == Some(hash.as_str())).then_some(m)
        };
        let manifest = data.and_then(|dir| Manifest::read_with_hash(dir).ok()).and_then(of_run);
        let source = run_config.as_ref().and_then(|c| c.source.path.clone());
        let results = results(folder).or_else(|| results(run));
        Ok(Facts {
            config: config.unwrap_or_default(),
            files: names(folder)?,
            run: run_config,
            manifest,
            results,
            source_licence: source.and_then(|path| licence(Path::new(&path))),
            record,
        })
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "reading", e))?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// results.json of a folder or of a folder in it, the first by name.
fn results(folder: &Path) -> Option<Value> {
    let mut places: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).collect();
    places.sort();
    let places = std::iter::once(folder.to_path_buf()).chain(places);
    let read = |dir: PathBuf| {
        let value: Value =
            json::read_if_present(&dir.join("results.json"), "valid JSON").ok()??;
        value["runs"].is_array().then_some(value)
    };
    places.into_iter().find_map(read)
}

/// The licence in the YAML header of a folder's README.md.
fn licence(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("README.md")).ok()?;
    let header = text.strip_prefix("---")?.split("\n---").next()?;
    let line = header.lines().find_map(|line| line.strip_prefix("license:"))?;
    let name = line.trim().trim_matches(['"', '\'', '[', ']']).trim();
    (!name.is_empty()).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_of_sources() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join("README.md"), text).unwrap();
            licence(dir.path())
        };
        let header = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n";
        assert_eq!(read(header), Some("apache-2.0".to_string()));
        assert_eq!(read("---\nlicense: \"other\"\n---\n"), Some("other".to_string()));
        assert_eq!(read("# A model\nlicense: mit\n"), None);
        assert_eq!(read("---\nlicense:\n---\n"), None);
    }
}
