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
    v["chat_template"] = json!(template);
    let token = json!({"content": mask, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    if let Some(Value::Object(added)) = v.get_mut("added_tokens_decoder") {
        added.insert(mask_id.to_string(), token);
    }
    Ok(v)
}

/// Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into `out/tokenizer`.
pub(crate) fn write_tokenizer(
    out: &Path,
    tokenizer: &Tokenizer,
    config: &Value,
    template: &ChatTemplate,
) -> Result<()> {
    let dir = out.join("tokenizer");
    std::fs::create_dir_all(&dir).map_err(Error::io("making", &dir))?;
    write_atomic(&dir.join("tokenizer.json"), tokenizer.json().as_bytes())?;
    let config =
        serde_json::to_string_pretty(config).map_err(|e| Error::Internal(e.to_string()))?;
    write_atomic(&dir.join("tokenizer_config.json"), (config + "\n").as_bytes())?;
    Ok(write_atomic(&dir.join("chat_template.jinja"), template.source().as_bytes())?)
}
