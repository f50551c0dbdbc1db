//! `tokenizer.json`, read and completed.
//!
//! In: a tokenizer folder. Out: [`TokenizerSource`]: sizes, added tokens and which of them part the
//! text, the JSON with the mask token added. What the 1.0 engine wants of it is made in
//! `canonical.rs`.

use crate::error::{Error, Result};
use crate::tokenize::json_text::values_of;
use aho_corasick::AhoCorasick;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;

/// A token outside the model's merges: matched in text before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its string.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// Whether it is a control token.
    pub special: bool,
}

/// A `tokenizer.json` read and looked at, from which either engine can be made.
pub struct TokenizerSource {
    pub(crate) path: std::path::PathBuf,
    pub(crate) json: String,
    pub(crate) added: Vec<AddedToken>,
    pub(crate) vocab_size: usize,
    /// Ids below this are the model's.
    pub(crate) model_size: usize,
    pub(crate) missing_bytes: Vec<char>,
    pub(crate) eos: Option<String>,
    /// Whether text is cut at added tokens before, and no differently than, all else that is done
    /// to it.
    local: bool,
}

impl TokenizerSource {
    /// Reads `dir/tokenizer.json` (or the file itself).
    pub fn read(dir: &Path) -> Result<Self> {
        let path = if dir.is_dir() { dir.join("tokenizer.json") } else { dir.to_path_buf() };
        let json = std::fs::read_to_string(&path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::NotFound {
                Error::Tokenizer {
                    path: dir.to_path_buf(),
                    reason: "no tokenizer.json there; give the folder of a Hugging Face tokenizer"
                        .to_string(),
                }
            } else {
                Error::io("reading", &path)(e)
            }
        })?;
        let eos = if dir.is_dir() {
            crate::template::chat::special_tokens(dir)?.remove("eos_token")
        } else {
            None
        };
        let mut s = TokenizerSource {
            path,
            json,
            added: Vec::new(),
            vocab_size: 0,
            model_size: 0,
            missing_bytes: Vec::new(),
            eos,
            local: false,
        };
        s.look()?;
        Ok(s)
    }

    pub(crate) fn bad(&self, reason: impl Into<String>) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: reason.into() }
    }

    /// Sizes, added tokens, missing bytes.
    fn look(&mut self) -> Result<()> {
        let v: Head = serde_json::from_str(&self.json)
            .map_err(|e| self.bad(format!("not a tokenizer.json: {e}")))?;
        let mut size = v.model.vocab.size;
        self.model_size = size;
        self.added.clear();
        self.local = local(&v.normalizer) && local(&v.pre_tokenizer);
        for t in v.added_tokens {
            size = size.max(t.id as usize + 1);
            // One that takes the white space beside it along, or is sought in normalised text, is
            // not cut at plainly.
            self.local &=
                !(t.lstrip || t.rstrip || t.single_word || t.normalized.unwrap_or(!t.special));
            self.added.push(AddedToken { content: t.content, id: t.id, special: t.special });
        }
        if size == 0 {
            return Err(self.bad("its vocabulary is empty"));
        }
        self.vocab_size = size;
        let byte_level = v.model.kind.as_deref().is_none_or(|k| k == "BPE")
            && self.json.contains("\"ByteLevel\"");
        self.missing_bytes = if byte_level {
            byte_symbols().into_iter().filter(|c| !v.model.vocab.single.contains(c)).collect()
        } else {
            Vec::new()
        };
        Ok(())
    }

    /// Makes sure `token` is a control token; appends it with the next free id if the tokenizer
    /// lacks it. Gives its id.
    pub fn ensure_token(&mut self, token: &str) -> Result<u32> {
        if let Some(t) = self.added.iter().find(|t| t.content == token) {
            return Ok(t.id);
        }
        let id = self.vocab_size as u32;
        let entry = json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}).to_string();
        // The file is left as it is but for the new entry at the end of its list.
        let list = values_of(&self.json, ["added_tokens"])
            .filter(|[l]| self.json[l.clone()].starts_with('['));
        match list {
            Some([list]) => {
                let inside = self.json[list.start + 1..list.end - 1].trim_end();
                let (at, empty) = (list.start + 1 + inside.len(), inside.is_empty());
                self.json.insert_str(at, &if empty { entry } else { format!(",{entry}") })
            }
            None => {
                let mut v: Value =
                    serde_json::from_str(&self.json).map_err(|e| self.bad(e.to_string()))?;
                v["added_tokens"] =
                    json!([serde_json::from_str::<Value>(&entry).unwrap_or_default()]);
                self.json = serde_json::to_string(&v).map_err(|e| self.bad(e.to_string()))?;
            }
        }
        self.added.push(AddedToken { content: token.to_string(), id, special: true });
        self.vocab_size = id as usize + 1;
        Ok(id)
    }

    /// Ids of added tokens that part the text: no other is found across their edges, and what is
    /// done to the text behind does not depend on what stands before.
    pub(crate) fn parting(&self) -> Vec<i32> {
        let all = || self.added.iter().map(|t| t.content.as_str()).filter(|t| !t.is_empty());
        let Some(finder) = AhoCorasick::new(all()).ok().filter(|_| self.local) else {
            return Vec::new();
        };
        // One that holds another, is held, or ends as another begins could be found in its stead,
        // or the other in its.
        let starts: HashSet<&str> =
            all().flat_map(|t| t.char_indices().skip(1).map(|(i, _)| &t[..i])).collect();
        let ends: HashSet<&str> =
            all().flat_map(|t| t.char_indices().skip(1).map(|(i, _)| &t[i..])).collect();
        let held: HashSet<usize> = all()
            .flat_map(|t| {
                finder
                    .find_overlapping_iter(t)
                    .filter(|m| m.len() < t.len())
                    .map(|m| m.pattern().as_usize())
                    .collect::<Vec<_>>()
            })
            .collect();
        let alone = |(k, t): &(usize, &AddedToken)| {
            let t = t.content.as_str();
            let mut inside = t.char_indices().skip(1).map(|(i, _)| i);
            !held.contains(k)
                && inside.all(|i| !starts.contains(&t[i..]) && !ends.contains(&t[..i]))
                && finder.find_overlapping_iter(t).all(|m| m.len() == t.len())
        };
        let tokens = self.added.iter().filter(|t| !t.content.is_empty());
        tokens.enumerate().filter(alone).map(|(_, t)| t.id as i32).collect()
    }

    /// Tokens matched before the model.
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }
}

/// Whether a normalizer or pre-tokenizer treats a stretch of text alike wherever it stands, and
/// adds nothing at its edges.
fn local(v: &Value) -> bool {
    let all = |key: &str| v[key].as_array().is_some_and(|a| a.iter().all(local));
    match v["type"].as_str() {
        None => v.is_null(),
        Some("Sequence") => all("normalizers") || all("pretokenizers"),
        Some("ByteLevel") => v["add_prefix_space"].as_bool() != Some(true),
        Some(t) => [
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Lowercase",
            "Split",
            "Digits",
            "Punctuation",
            "Whitespace",
            "WhitespaceSplit",
        ]
        .contains(&t),
    }
}

/// The 256 characters that stand for bytes in a byte-level vocabulary (GPT-2's table).
fn byte_symbols() -> Vec<char> {
    let printable = |b: u32| {
        (0x21..=0x7e).contains(&b) || (0xa1..=0xac).contains(&b) || (0xae..=0xff).contains(&b)
    };
    let mut next = 256;
    (0..256u32)
        .filter_map(|b| {
            let code = if printable(b) { b } else { next };
            next += u32::from(!printable(b));
            char::from_u32(code)
        })
        .collect()
}

/// The parts of a tokenizer.json we look at, without building the rest in memory.
#[derive(serde::Deserialize)]
struct Head {
    #[serde(default)]
    added_tokens: Vec<HeadToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: HeadModel,
}
#[derive(serde::Deserialize)]
struct HeadToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    normalized: Option<bool>,
}
#[derive(serde::Deserialize)]
struct HeadModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Vocab,
}
/// Size of a vocabulary (a map of ids, or Unigram's list), and its entries of one character.
#[derive(Default)]
struct Vocab {
    size: usize,
    single: std::collections::HashSet<char>,
}
impl<'de> serde::Deserialize<'de> for Vocab {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> serde::de::Visitor<'de> for Visit {
            type Value = Vocab;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a map of tokens to ids or a list of tokens with scores")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Vocab, A::Error> {
                let mut v = Vocab::default();
                while let Some((k, id)) = map.next_entry::<std::borrow::Cow<'de, str>, u32>()? {
                    v.size = v.size.max(id as usize + 1);
                    let mut chars = k.chars();
                    if let (Some(c), None) = (chars.next(), chars.next()) {
                        v.single.insert(c);
                    }
                }
                Ok(v)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Vocab, A::Error> {
                let mut v = Vocab::default();
                while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {
                    v.size += 1;
                }
                Ok(v)
            }
        }
        d.deserialize_any(Visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_the_end_of_the_list() {
        let dir = tempfile::tempdir().unwrap();
        for (list, want) in [
            ("[]", "[X]"),
            (r#"[ {"id": 1, "content": "]"} ]"#, r#"[ {"id": 1, "content": "]"},X ]"#),
        ] {
            let text = |list: &str| {
                format!(
                    r#"{{"model": {{"vocab": {{"a": 0}}, "added_tokens": 3}}, "added_tokens": {list}, "z": []}}"#
                )
            };
            std::fs::write(dir.path().join("tokenizer.json"), text(list)).unwrap();
            let mut t = TokenizerSource::read(dir.path()).unwrap();
            let id = t.ensure_token("M").unwrap();
            let x = json!({"id": id, "content": "M", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
            assert_eq!(t.json, text(&want.replace('X', &x.to_string())));
        }
    }

    #[test]
    fn tokens_that_part_the_text() {
        let dir = tempfile::tempdir().unwrap();
        let parting = |tokens: &[(&str, &str)], normalizer: &str, pre_tokenizer: &str| {
            let list = tokens.iter().enumerate().map(|(i, (content, more))| {
                format!(r#"{{"id": {i}, "content": "{content}", "special": true{more}}}"#)
            });
            let text = format!(
                r#"{{"added_tokens": [{}], "normalizer": {normalizer}, "pre_tokenizer": {pre_tokenizer}, "model": {{"vocab": {{"a": 9}}}}}}"#,
                list.collect::<Vec<_>>().join(",")
            );
            std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
            TokenizerSource::read(dir.path()).unwrap().parting()
        };
        let plain = [("<s>", ""), ("<e>", "")];
        let bytes =
            |prefix: bool| format!(r#"{{"type": "ByteLevel", "add_prefix_space": {prefix}}}"#);
        assert_eq!(parting(&plain, "null", &bytes(false)), [0, 1]);
        let sequence = format!(
            r#"{{"type": "Sequence", "pretokenizers": [{{"type": "Digits"}}, {}]}}"#,
            bytes(false)
        );
        assert_eq!(parting(&plain, r#"{"type": "NFC"}"#, &sequence), [0, 1]);
        // What is done to text here depends on where it stands, or adds something at its start.
        let none: [i32; 0] = [];
        assert_eq!(parting(&plain, "null", &bytes(true)), none);
        assert_eq!(parting(&plain, "null", &sequence.replace("false", "true")), none);
        assert_eq!(
            parting(&plain, "null", r#"{"type": "Metaspace", "prepend_scheme": "first"}"#),
            none
        );
        assert_eq!(parting(&plain, r#"{"type": "Prepend", "prepend": "_"}"#, "null"), none);
        for more in ["lstrip", "rstrip", "single_word", "normalized"] {
            assert_eq!(
                parting(&[("<s>", ""), ("<e>", &format!(r#", "{more}": true"#))], "null", "null"),
                none,
                "{more}"
            );
        }
        // One inside another, one that ends as another begins, one that ends as it begins itself.
        assert_eq!(parting(&[("<s>", ""), ("x<s>", ""), ("<e>", "")], "null", "null"), [2]);
        assert_eq!(parting(&[("<s>", ""), (">>", ""), ("[e]", "")], "null", "null"), [2]);
        assert_eq!(parting(&[("|m|", ""), ("<s>", "")], "null", "null"), [1]);
    }

    #[test]
    fn byte_table() {
        let t = byte_symbols();
        assert_eq!(t.len(), 256);
        assert_eq!((t[b'a' as usize], t[b' ' as usize], t[b'\n' as usize]), ('a', 'Ġ', 'Ċ'));
    }
}
