//! The id of the mask token, on which the files of a model's folder must agree.
//!
//! In: a tokenizer's folder and the mask token of the run. Out: an error that names both ids where
//! `config.json`, `dlm_config.json` or `tokenizer_config.json` has another one.

use crate::error::{Error, Result};
use crate::tokenize::special_tokens::read_json;
use crate::tokenize::tokenizer::TokenizerSource;
use serde_json::Value;
use std::path::Path;

/// Compares the id of `token` with what the other files of the folder say.
pub(crate) fn check_mask_id(
    dir: &Path,
    tokenizer: &TokenizerSource,
    token: &str,
    id: u32,
) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    let refuse = |reason: String| Err(Error::Tokenizer { path: dir.to_path_buf(), reason });
    for file in ["config.json", "dlm_config.json"] {
        let config = read_json(&dir.join(file))?.unwrap_or_default();
        let found = match config.get("mask_token_id") {
            None | Some(Value::Null) => continue,
            Some(found) => found,
        };
        if !found.is_u64() && !found.is_i64() {
            return refuse(format!("{file} says mask_token_id {found}, which is no token id"));
        }
        if found.as_u64() == Some(u64::from(id)) {
            continue;
        }
        let named =
            tokenizer.added_tokens().iter().find(|t| found.as_u64() == Some(u64::from(t.id)));
        let remedy = match named {
            Some(t) => format!(
                "its token {found} is {:?}: if that is the mask token, give --mask-token '{}'; else",
                t.content, t.content
            ),
            None => "name the token that the model was trained with (--mask-token), or".to_string(),
        };
        return refuse(format!(
            "{file} says mask_token_id {found}, but the mask token {token:?} has the id {id} in tokenizer.json; {remedy} correct {file}"
        ));
    }
    let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
    for (other, entry) in decoder.into_iter().flatten() {
        if entry["content"].as_str() == Some(token) && *other != id.to_string() {
            return refuse(format!(
                "tokenizer_config.json says that the mask token {token:?} has the id {other}, but it has the id {id} in tokenizer.json; correct one of them"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ids_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put(
            "tokenizer.json",
            r#"{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "<m>", "special": true}]}"#,
        );
        let check = |token: &str| {
            let mut tokenizer = TokenizerSource::read(dir.path()).unwrap();
            let id = tokenizer.ensure_token(token).unwrap();
            check_mask_id(dir.path(), &tokenizer, token, id).map_err(|e| e.to_string())
        };
        assert_eq!(check("<m>"), Ok(()));
        for file in ["config.json", "dlm_config.json"] {
            for (value, token, says) in [
                ("1", "<m>", ""),
                ("null", "<m>", ""),
                ("7", "<m>", "mask_token_id 7, but the mask token \"<m>\" has the id 1"),
                ("-1", "<m>", "mask_token_id -1, but"),
                ("\"1\"", "<m>", "mask_token_id \"1\", which is no token id"),
                ("1.5", "<m>", "mask_token_id 1.5, which is no token id"),
                (
                    "1",
                    "<other>",
                    "has the id 2 in tokenizer.json; its token 1 is \"<m>\": if that is the mask token, give --mask-token '<m>'",
                ),
            ] {
                put(file, &format!(r#"{{"mask_token_id": {value}}}"#));
                match check(token) {
                    Ok(()) => assert_eq!(says, "", "{file} {value}"),
                    Err(e) => {
                        assert!(!says.is_empty() && e.contains(file) && e.contains(says), "{e}")
                    }
                }
            }
            put(file, "{}");
        }
        put("tokenizer_config.json", r#"{"added_tokens_decoder": {"9": {"content": "<m>"}}}"#);
        let error = check("<m>").unwrap_err();
        assert!(error.contains("has the id 9, but it has the id 1"), "{error}");
    }
}
