//! The `tokenizer/` folder of a dataset: the tokenizer with the mask token, and the chat template
//! that was used.

use crate::error::{Error, Result};
use crate::template::chat::ChatTemplate;
use crate::tokenize::special_tokens::read_json;
use crate::tokenize::tokenizer::Tokenizer;
use dlm_datasets::fs::write_atomic;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The `tokenizer_config.json` of the folder `dir`, with the template and the mask token added.
pub(crate) fn tokenizer_config(
    dir: &Path,
    specials: &BTreeMap<String, String>,
    template: &str,
    mask: &str,
    mask_id: u32,
) -> Result<Value> {
    let mut v = read_json(&dir.join("tokenizer_config.json"))?
        .unwrap_or_else(|| json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false}));
    if !v.is_object() {
        return Err(Error::Tokenizer {
            path: dir.to_path_buf(),
            reason: "its tokenizer_config.json is not a JSON object".to_string(),
        });
    }
    for (name, token) in specials {
        if v.get(name).is_none_or(Value::is_null) {
            v[name] = json!(token);
        }
    }
    let named = named_templates(dir, &v)?;
    v["chat_template"] = match named.is_empty() {
        true => json!(template),
        false => std::iter::once(("default", template))
            .chain(named.iter().map(|(name, template)| (name.as_str(), template.as_str())))
            .map(|(name, template)| json!({"name": name, "template": template}))
            .collect(),
    };
    let token = json!({"content": mask, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    if let Some(Value::Object(added)) = v.get_mut("added_tokens_decoder") {
        added.insert(mask_id.to_string(), token);
    }
    Ok(v)
}

/// Folder of the templates besides the default one, `NAME.jinja`, as transformers 5 writes them.
const ADDITIONAL: &str = "additional_chat_templates";

/// The templates besides the default one (`tool_use`, `rag`), by name: those of a list in
/// `tokenizer_config.json`, and those of the folder `additional_chat_templates`.
fn named_templates(dir: &Path, config: &Value) -> Result<BTreeMap<String, String>> {
    let list = config.get("chat_template").and_then(Value::as_array);
    let text = |entry: &Value, key: &str| Some(entry.get(key)?.as_str()?.to_string());
    let mut named: BTreeMap<String, String> = list
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((text(entry, "name")?, text(entry, "template")?)))
        .collect();
    let folder = dir.join(ADDITIONAL);
    let files = std::fs::read_dir(&folder).into_iter().flatten().filter_map(|file| file.ok());
    for path in files.map(|file| file.path()) {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if let (Some(stem), Some("jinja")) = (stem, path.extension().and_then(|e| e.to_str())) {
            let template = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
            named.insert(stem.to_string(), template);
        }
    }
    named.retain(|name, _| name != "default" && !name.is_empty() && !name.contains(['/', '\\']));
    Ok(named)
}

/// Writes `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and the other templates
/// that the source names into `out/tokenizer`.
pub(crate) fn write_tokenizer(
    out: &Path,
    tokenizer: &Tokenizer,
    config: &Value,
    template: &ChatTemplate,
) -> Result<()> {
    let dir = out.join("tokenizer");
    std::fs::create_dir_all(&dir).map_err(Error::io("making", &dir))?;
    write_atomic(&dir.join("tokenizer.json"), tokenizer.json().as_bytes())?;
    for entry in config.get("chat_template").and_then(Value::as_array).into_iter().flatten() {
        if let (Some(name), Some(template)) = (entry["name"].as_str(), entry["template"].as_str())
            && name != "default"
        {
            let folder = dir.join(ADDITIONAL);
            std::fs::create_dir_all(&folder).map_err(Error::io("making", &folder))?;
            write_atomic(&folder.join(format!("{name}.jinja")), template.as_bytes())?;
        }
    }
    let config =
        serde_json::to_string_pretty(config).map_err(|e| Error::Internal(e.to_string()))?;
    write_atomic(&dir.join("tokenizer_config.json"), (config + "\n").as_bytes())?;
    Ok(write_atomic(&dir.join("chat_template.jinja"), template.source().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_besides_the_default_one_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let config = || tokenizer_config(dir.path(), &BTreeMap::new(), "used", "<m>", 9).unwrap();
        put("tokenizer_config.json", r#"{"chat_template": "old"}"#);
        assert_eq!(config()["chat_template"], "used");
        let list =
            json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "old"}]);
        put("tokenizer_config.json", &json!({"chat_template": list}).to_string());
        let kept =
            json!([{"name": "default", "template": "used"}, {"name": "tool_use", "template": "t"}]);
        assert_eq!(config()["chat_template"], kept);
        put("tokenizer_config.json", "{}");
        std::fs::create_dir(dir.path().join(ADDITIONAL)).unwrap();
        put("additional_chat_templates/tool_use.jinja", "t");
        assert_eq!(config()["chat_template"], kept);
    }
}
