//! Named special tokens of a tokenizer folder.
//!
//! In: the folder's `special_tokens_map.json` and `tokenizer_config.json`, either of which may be
//! missing. Out: strings by name (`bos_token`, `eos_token`, …).

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The special tokens by name. Where both files have a name, `tokenizer_config.json` wins.
pub(crate) fn special_tokens(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(Value::Object(map)) = read_json(&dir.join(file))? else {
            continue;
        };
        for name in ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"] {
            let text = match map.get(name) {
                Some(Value::String(s)) => Some(s.as_str()),
                Some(Value::Object(o)) => o.get("content").and_then(Value::as_str),
                _ => None,
            };
            if let Some(text) = text {
                out.insert(name.to_string(), text.to_string());
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
