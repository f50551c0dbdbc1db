//! The names of a model folder's files, one list for hubs, buckets and `dlm-train`.

use serde_json::Value;
use std::path::Path;

/// All weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Names the files of weights that are in several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Files of a tokenizer, its chat template among them.
pub const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
/// What a model has besides tokenizer and weights.
pub(crate) const CONFIG_FILES: [&str; 3] =
    ["config.json", "generation_config.json", "dlm_config.json"];
/// Folder of the chat templates besides the default one.
pub const NAMED_TEMPLATES: &str = "additional_chat_templates";
/// The longest file other than weights, which is read whole: ten times the largest tokenizer.
pub(crate) const SMALL_BYTES: u64 = 256 << 20;

/// The weight files that an index names, sorted; none if there is no index, if it names none, or if
/// a name leads into another folder.
pub(crate) fn shards(index: &Path) -> Option<Vec<String>> {
    let json: Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
    let map = json.get("weight_map")?.as_object()?;
    let mut names: Vec<String> =
        map.values().filter_map(|file| file.as_str().map(String::from)).collect();
    names.sort_unstable();
    names.dedup();
    let plain = |n: &String| !n.is_empty() && !n.contains(['/', '\\']) && n != "..";
    (!names.is_empty() && names.iter().all(plain)).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        assert_eq!(shards(&index), None);
        let of = |map: serde_json::Value| {
            std::fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).unwrap();
            shards(&index)
        };
        let map = serde_json::json!({"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"});
        assert_eq!(of(map).unwrap(), ["model-1.safetensors", "model-2.safetensors"]);
        for name in ["", "..", "../x.safetensors", "a/b", "a\\b"] {
            assert_eq!(of(serde_json::json!({"a": "model-1.safetensors", "b": name})), None);
        }
        assert_eq!(of(serde_json::json!({})), None);
    }
}
