//! Named special tokens of a tokenizer folder.
//!
//! In: the folder's `special_tokens_map.json` and `tokenizer_config.json`, either of which may be
//! missing. Out: strings by name (`bos_token`, `eos_token`, …).

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Names of the tokens that every tokenizer of transformers may have, in its order.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token that `tokenizer_config.json` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigToken {
    pub content: String,
    /// Whether it is a control token.
    pub special: bool,
}

/// The text of a token, which is a string or an object with `content`.
fn text_of(v: &Value) -> Option<&str> {
    v.as_str().or_else(|| v.get("content")?.as_str()).filter(|s| !s.is_empty())
}

/// The tokens that `tokenizer_config.json` adds to the vocabulary, in the order in which
/// transformers gives them ids: `added_tokens_decoder`, named tokens, extra tokens.
pub(crate) fn tokens_of_config(dir: &Path) -> Result<Vec<ConfigToken>> {
    let Some(Value::Object(config)) = read_json(&dir.join("tokenizer_config.json"))? else {
        return Ok(Vec::new());
    };
    let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
    let mut out: Vec<(u32, ConfigToken)> = Vec::new();
    for (id, token) in decoder.into_iter().flatten() {
        if let (Ok(id), Some(content)) = (id.parse(), text_of(token)) {
            let special = token["special"].as_bool().unwrap_or(false);
            out.push((id, ConfigToken { content: content.to_string(), special }));
        }
    }
    out.sort_by_key(|t| t.0);
    let mut out: Vec<ConfigToken> = out.into_iter().map(|t| t.1).collect();
    let extra = &["extra_special_tokens", "additional_special_tokens"];
    let named = NAMES.iter().filter_map(|name| config.get(*name));
    let others = config
        .iter()
        .filter(|(name, _)| name.ends_with("_token") && !NAMES.contains(&name.as_str()))
        .map(|(_, v)| v);
    let of_maps = extra.iter().filter_map(|k| config.get(*k)?.as_object()).flat_map(|m| m.values());
    let of_lists = extra.iter().filter_map(|k| config.get(*k)?.as_array()).flatten();
    out.extend(named.chain(others).chain(of_maps).chain(of_lists).filter_map(|token| {
        Some(ConfigToken { content: text_of(token)?.to_string(), special: true })
    }));
    let mut seen = HashSet::new();
    out.retain(|t| seen.insert(t.content.clone()));
    Ok(out)
}

/// The special tokens by name. Where both files have a name, `tokenizer_config.json` wins.
pub(crate) fn special_tokens(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(Value::Object(map)) = read_json(&dir.join(file))? else {
            continue;
        };
        let extra = map.get("extra_special_tokens").and_then(Value::as_object);
        for (name, token) in map.iter().chain(extra.into_iter().flatten()) {
            if let Some(text) = text_of(token).filter(|_| name.ends_with("_token")) {
                out.insert(name.clone(), text.to_string());
            }
        }
    }
    Ok(out)
}

/// The JSON in a file, or None if the file does not exist.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::Input {
            path: path.display().to_string(),
            reason: format!("not JSON: {e}"),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", path)(e)),
    }
}
