//! Ids of tokens by their text, and the end-of-text token that a tokenizer names.
//!
//! In: a model folder. Out: the id of a token in `tokenizer_config.json`, else in
//! `tokenizer.json`; the end-of-text token is `eos_token` in `tokenizer_config.json`, else in
//! `special_tokens_map.json`.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::io::json;

/// The id of the end-of-text token; `None` where no file names one, or none has an id for it.
pub(crate) fn end_of_text(dir: &Path) -> Result<Option<i64>> {
    let read = |name: &str| json::read_if_present::<Value>(&dir.join(name), "valid JSON");
    let config = read("tokenizer_config.json")?;
    let token = match config.as_ref().and_then(eos_token) {
        Some(token) => Some(token),
        None => read("special_tokens_map.json")?.as_ref().and_then(eos_token),
    };
    match token {
        Some(token) => id_of(dir, &token),
        None => Ok(None),
    }
}

/// The id of a token; `None` where no file has one.
pub(crate) fn id_of(dir: &Path, token: &str) -> Result<Option<i64>> {
    let read = |name: &str| json::read_if_present::<Value>(&dir.join(name), "valid JSON");
    let config = read("tokenizer_config.json")?;
    if let Some(id) = config.as_ref().and_then(|config| decoder_id(config, token)) {
        return Ok(Some(id));
    }
    // a tokenizer.json that cannot be read is reported where prompts are encoded
    let tokenizer = read("tokenizer.json").unwrap_or_default();
    Ok(tokenizer.as_ref().and_then(|tokenizer| vocabulary_id(tokenizer, token)))
}

/// `eos_token` as a text, or as an object with `content`.
fn eos_token(file: &Value) -> Option<String> {
    let token = file.get("eos_token")?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(String::from)
}

/// The id in `added_tokens_decoder`: id → token.
fn decoder_id(config: &Value, token: &str) -> Option<i64> {
    let tokens = config.get("added_tokens_decoder")?.as_object()?;
    let (id, _) = tokens
        .iter()
        .find(|(_, entry)| entry.get("content").and_then(Value::as_str) == Some(token))?;
    id.parse().ok()
}

/// The id among `added_tokens`, else in the vocabulary of a `tokenizer.json`.
fn vocabulary_id(tokenizer: &Value, token: &str) -> Option<i64> {
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    let added = added
        .into_iter()
        .flatten()
        .find(|entry| entry.get("content").and_then(Value::as_str) == Some(token));
    added
        .and_then(|entry| entry.get("id"))
        .or_else(|| tokenizer.get("model")?.get("vocab")?.get(token))?
        .as_i64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_in_every_form() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(end_of_text(dir.path()).unwrap(), None);
        write("special_tokens_map.json", r#"{"eos_token": {"content": "</s>"}}"#);
        assert_eq!(end_of_text(dir.path()).unwrap(), None);
        write("tokenizer.json", r#"{"model": {"vocab": {"</s>": 5}}}"#);
        assert_eq!(end_of_text(dir.path()).unwrap(), Some(5));
        write("tokenizer.json", r#"{"added_tokens": [{"id": 6, "content": "</s>"}]}"#);
        assert_eq!(end_of_text(dir.path()).unwrap(), Some(6));
        write(
            "tokenizer_config.json",
            r#"{"eos_token": "<e>", "added_tokens_decoder": {"7": {"content": "<e>"}}}"#,
        );
        assert_eq!(end_of_text(dir.path()).unwrap(), Some(7));
    }
}
