//! `tokenizer.json` in the form that the fast engine (tokenizers 1.0) requires.
//!
//! In: a [`TokenizerSource`]. Out: the converted JSON. `TokenizerSource::canonical` converts a
//! JSON tree of the whole file and is the reference implementation;
//! `TokenizerSource::canonical_by_splicing` cuts the vocabulary and the merges out as text,
//! converts the rest and inserts them again, which is many times faster. A test compares the two.

use crate::tokenize::json_text::{string_end, values_of};
use crate::tokenize::tokenizer_file::TokenizerSource;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::ops::Range;
use tokenizers_fast as fast;

impl TokenizerSource {
    /// The JSON in the form that the fast engine requires.
    pub(crate) fn canonical(&self) -> std::result::Result<String, String> {
        let mut v: Value = serde_json::from_str(&self.json).map_err(|e| e.to_string())?;
        if !self.missing_bytes.is_empty() {
            let vocab =
                v.get_mut("model").and_then(|m| m.get_mut("vocab")).and_then(Value::as_object_mut);
            let vocab = vocab.ok_or("its vocabulary is no map")?;
            for (k, c) in self.missing_bytes.iter().enumerate() {
                vocab.insert(c.to_string(), json!(self.model_size + k));
            }
        }
        self.canonicalize(&mut v)?;
        serde_json::to_string(&v).map_err(|e| e.to_string())
    }

    /// The part of the conversion that does not depend on the entries of vocabulary and merges.
    fn canonicalize(&self, v: &mut Value) -> std::result::Result<(), String> {
        for k in ["truncation", "padding"] {
            v[k] = Value::Null;
        }
        let missing = self.missing_bytes.len() as u64;
        for t in v
            .get_mut("added_tokens")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .filter(|_| missing > 0)
        {
            if let Some(id) =
                t.get("id").and_then(Value::as_u64).filter(|&id| id >= self.model_size as u64)
            {
                t["id"] = json!(id + missing);
            }
        }
        fast::canonicalize_value(v).map_err(|e| e.to_string())
    }

    /// [`canonical`](Self::canonical) without a JSON tree of the hundreds of thousands of entries
    /// of vocabulary and merges: they are cut out as text, the rest is converted, and they are
    /// inserted again. None if the result could differ from `canonical`.
    pub(crate) fn canonical_by_splicing(&self) -> Option<String> {
        let [model] = values_of(&self.json, ["model"])?;
        let inside = &self.json[model.clone()];
        let [vocab, merges] = values_of(inside, ["vocab", "merges"])?;
        let (vocab_text, merges_text) = (&inside[vocab.clone()], &inside[merges.clone()]);
        if !vocab_text.starts_with('{') || !merges_text.starts_with('[') {
            return None;
        }
        let mut vocab_text = Cow::Borrowed(vocab_text);
        if !self.missing_bytes.is_empty() {
            let mut extended = vocab_text.strip_suffix('}')?.to_string();
            for (k, c) in self.missing_bytes.iter().enumerate() {
                extended.push_str(&format!(
                    ",{}:{}",
                    serde_json::to_string(c).ok()?,
                    self.model_size + k
                ));
            }
            vocab_text = Cow::Owned(extended + "}");
        }
        let merges_text = merge_pairs(merges_text)?;
        let (first, second) =
            if vocab.start < merges.start { (&vocab, &merges) } else { (&merges, &vocab) };
        let empty = |r: &Range<usize>| if *r == vocab { "{}" } else { "[]" };
        let shell = [
            &self.json[..model.start],
            &inside[..first.start],
            empty(first),
            &inside[first.end..second.start],
            empty(second),
            &inside[second.end..],
            &self.json[model.end..],
        ]
        .concat();
        let mut v: Value = serde_json::from_str(&shell).ok()?;
        self.canonicalize(&mut v).ok()?;
        let shell = serde_json::to_string(&v).ok()?;
        let [model] = values_of(&shell, ["model"])?;
        let [vocab, merges] = values_of(&shell[model.clone()], ["vocab", "merges"])?;
        let mut inserts = [(vocab, &*vocab_text), (merges, &*merges_text)];
        inserts.sort_by_key(|insert| insert.0.start);
        let mut out = String::with_capacity(shell.len() + vocab_text.len() + merges_text.len());
        let mut at = 0;
        for (place, text) in inserts {
            out.push_str(&shell[at..model.start + place.start]);
            out.push_str(text);
            at = model.start + place.end;
        }
        out.push_str(&shell[at..]);
        Some(out)
    }
}

/// A JSON list of merges with every `"a b"` rewritten as `["a","b"]`; a list of pairs is returned
/// unchanged. None if a merge has neither form.
fn merge_pairs(json: &str) -> Option<Cow<'_, str>> {
    let bytes = json.as_bytes();
    let first = json[1..].trim_start();
    if first.starts_with(['[', ']']) {
        return Some(Cow::Borrowed(json));
    }
    let mut out = String::with_capacity(json.len() + json.len() / 2);
    out.push('[');
    let mut i = 1;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                let end = string_end(bytes, i + 1)?;
                let merge = &json[i + 1..end];
                i = end;
                if merge.starts_with("#version") {
                    // A comment, which the converter skips too.
                } else {
                    let (a, b) = merge.split_once(' ')?;
                    // A space may also be written as an escape, which needs a JSON parser.
                    if b.contains(' ') || merge.contains("\\u0020") {
                        return None;
                    }
                    if out.len() > 1 {
                        out.push(',');
                    }
                    out.extend(["[\"", a, "\",\"", b, "\"]"]);
                }
            }
            b',' => {}
            b']' if json[i + 1..].trim().is_empty() => {
                out.push(']');
                return Some(Cow::Owned(out));
            }
            b if b.is_ascii_whitespace() => {}
            _ => return None,
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Splicing gives the same JSON as the reference implementation.
    #[test]
    fn splicing_equals_the_reference() {
        let dir = tempfile::tempdir().unwrap();
        let mut sources = Vec::new();
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
        sources.push(TokenizerSource::read(&sample).unwrap());
        for (merges, quick) in [
            (r#"["a b", "ab c", "\" \\"]"#, true),
            (r##"["#version: 0.2", "a b"]"##, true),
            (r#"[["a", "b"], [ "ab", "c" ]]"#, true),
            ("[]", true),
            (r#"["a\u0020b"]"#, false),
            (r#"["a b", ["ab", "c"]]"#, false),
            (r#"["a b c"]"#, false),
            ("null", false),
        ] {
            let byte_level = r#""pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}, "#;
            for more in ["", byte_level] {
                let text = format!(
                    r#"{{"version": "1.0", "truncation": {{"x": 1}}, {more}"added_tokens": [{{"id": 5, "content": "<e>", "special": true}}],
                    "model": {{"dropout": null, "merges": {merges}, "unk_token": null, "vocab": {{"a": 0, "b": 1, "ab": 2, "c": 3, "abc": 4 }} }} }}"#
                );
                std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
                let s = TokenizerSource::read(dir.path()).unwrap();
                assert_eq!(s.canonical_by_splicing().is_some(), quick, "{merges}");
                assert_eq!(s.missing_bytes.is_empty(), more.is_empty());
                sources.push(s);
            }
        }
        for s in &sources {
            if let Some(quick) = s.canonical_by_splicing() {
                let slow = s.canonical().unwrap();
                let [quick, slow]: [Value; 2] =
                    [quick, slow].map(|t| serde_json::from_str(&t).unwrap());
                assert!(quick == slow, "{}", s.path.display());
            }
        }
    }
}
