//! Reading `tokenizer.json` and adding the mask token to it.
//!
//! In: a tokenizer folder. Out: [`TokenizerSource`]: the JSON, the vocabulary size, the added
//! tokens, and which of them always split the text. `canonical.rs` converts the JSON for the fast
//! engine, `tokenizer.rs` loads the engines.

use crate::error::{Error, Result};
use crate::tokenize::json_text::values_of;
use crate::tokenize::special_tokens::{ConfigToken, special_tokens};
use aho_corasick::AhoCorasick;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;

/// An entry of `added_tokens`: a token whose string is matched in the text before the model's
/// merges are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub content: String,
    pub id: u32,
    /// Whether it is a control token (`special` in the file).
    pub special: bool,
}

/// The content of a `tokenizer.json`, from which either engine can be loaded.
pub(crate) struct TokenizerSource {
    pub(crate) path: std::path::PathBuf,
    pub(crate) json: String,
    pub(crate) added: Vec<AddedToken>,
    /// One past the largest id.
    pub(crate) vocab_size: usize,
    /// Ids below this belong to the model's vocabulary, ids from here on to added tokens.
    pub(crate) model_size: usize,
    /// Byte symbols that a byte-level vocabulary lacks.
    pub(crate) missing_bytes: Vec<char>,
    /// The `eos_token` of the folder.
    pub(crate) eos: Option<String>,
    /// Whether the text between two added tokens is processed independently of the text around it.
    independent_segments: bool,
    /// Whether text is treated by its position, so that a piece encoded alone can differ from the
    /// same piece in a text (`in_context.rs`).
    pub(crate) treats_by_position: bool,
}

impl TokenizerSource {
    /// Reads `dir/tokenizer.json` (or the file itself).
    pub(crate) fn read(dir: &Path) -> Result<Self> {
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
        let eos = if dir.is_dir() { special_tokens(dir)?.remove("eos_token") } else { None };
        let mut s = TokenizerSource {
            path,
            json,
            added: Vec::new(),
            vocab_size: 0,
            model_size: 0,
            missing_bytes: Vec::new(),
            eos,
            independent_segments: false,
            treats_by_position: false,
        };
        s.switch_dropout_off();
        s.inspect()?;
        Ok(s)
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: reason.into() }
    }

    /// Merges are never left out by chance: ids would differ from run to run.
    fn switch_dropout_off(&mut self) {
        let [model] = values_of(&self.json, ["model"]).unwrap_or([0..0]);
        let dropout = values_of(&self.json[model.clone()], ["dropout"]);
        if let Some([dropout]) = dropout {
            let place = model.start + dropout.start..model.start + dropout.end;
            if &self.json[place.clone()] != "null" {
                self.json.replace_range(place, "null");
            }
        }
    }

    /// Fills the fields that derive from the JSON.
    fn inspect(&mut self) -> Result<()> {
        let v: Header = serde_json::from_str(&self.json)
            .map_err(|e| self.error(format!("not a tokenizer.json: {e}")))?;
        let mut size = v.model.vocab.size;
        self.model_size = size;
        self.added.clear();
        self.independent_segments =
            is_position_independent(&v.normalizer) && is_position_independent(&v.pre_tokenizer);
        self.treats_by_position =
            treats_by_position(&v.normalizer) || treats_by_position(&v.pre_tokenizer);
        for t in v.added_tokens {
            self.treats_by_position |= t.lstrip || t.rstrip || t.single_word;
            size = size.max(t.id as usize + 1);
            // Tokens that absorb adjacent white space or are matched in normalized text depend on
            // the text around them.
            self.independent_segments &=
                !(t.lstrip || t.rstrip || t.single_word || t.normalized.unwrap_or(!t.special));
            self.added.push(AddedToken { content: t.content, id: t.id, special: t.special });
        }
        if size == 0 {
            return Err(self.error("its vocabulary is empty"));
        }
        self.vocab_size = size;
        let byte_level = v.model.kind.as_deref().is_none_or(|k| k == "BPE")
            && self.json.contains("\"ByteLevel\"");
        self.missing_bytes = if byte_level {
            byte_symbols().into_iter().filter(|c| !v.model.vocab.single_chars.contains(c)).collect()
        } else {
            Vec::new()
        };
        Ok(())
    }

    /// Adds a token that `tokenizer_config.json` names, as transformers does when it loads the
    /// folder.
    pub(crate) fn ensure_named(&mut self, token: &ConfigToken) -> Result<()> {
        if self.added.iter().any(|t| t.content == token.content) {
            return Ok(());
        }
        let id = match self.id_in_vocabulary(&token.content) {
            Some(id) => id,
            None => self.vocab_size as u32,
        };
        self.append(&token.content, id, token.special)
    }

    /// The id of an entry of the model's vocabulary.
    fn id_in_vocabulary(&self, token: &str) -> Option<u32> {
        if !self.json.contains(&serde_json::to_string(token).ok()?) {
            return None;
        }
        let v: Value = serde_json::from_str(&self.json).ok()?;
        let vocab = &v["model"]["vocab"];
        let listed = || vocab.as_array()?.iter().position(|entry| entry[0] == token);
        let id = vocab.get(token).and_then(Value::as_u64).or_else(|| Some(listed()? as u64))?;
        u32::try_from(id).ok()
    }

    /// The id of the added token `token`. If the tokenizer does not have it, it is appended as a
    /// control token with the next free id.
    pub(crate) fn ensure_token(&mut self, token: &str) -> Result<u32> {
        if let Some(t) = self.added.iter().find(|t| t.content == token) {
            return Ok(t.id);
        }
        let id = self.vocab_size as u32;
        self.append(token, id, true)?;
        Ok(id)
    }

    /// Appends an added token.
    fn append(&mut self, token: &str, id: u32, special: bool) -> Result<()> {
        let entry = json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special}).to_string();
        // The entry is inserted as text at the end of the list, so that the rest of the file keeps
        // its bytes.
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
                    serde_json::from_str(&self.json).map_err(|e| self.error(e.to_string()))?;
                v["added_tokens"] =
                    json!([serde_json::from_str::<Value>(&entry).unwrap_or_default()]);
                self.json = serde_json::to_string(&v).map_err(|e| self.error(e.to_string()))?;
            }
        }
        self.added.push(AddedToken { content: token.to_string(), id, special });
        self.vocab_size = self.vocab_size.max(id as usize + 1);
        Ok(())
    }

    /// Ids of added tokens at which the text is always split: no other added token can match across
    /// their edges, and the text after them is encoded independently of the text before them.
    pub(crate) fn splitting_tokens(&self) -> Vec<i32> {
        let all = || self.added.iter().map(|t| t.content.as_str()).filter(|t| !t.is_empty());
        let Some(finder) = AhoCorasick::new(all()).ok().filter(|_| self.independent_segments)
        else {
            return Vec::new();
        };
        // A token that contains another, is contained in another, or overlaps the start or end of
        // another does not match in every context.
        let prefixes: HashSet<&str> =
            all().flat_map(|t| t.char_indices().skip(1).map(|(i, _)| &t[..i])).collect();
        let suffixes: HashSet<&str> =
            all().flat_map(|t| t.char_indices().skip(1).map(|(i, _)| &t[i..])).collect();
        let contained: HashSet<usize> = all()
            .flat_map(|t| {
                finder
                    .find_overlapping_iter(t)
                    .filter(|m| m.len() < t.len())
                    .map(|m| m.pattern().as_usize())
                    .collect::<Vec<_>>()
            })
            .collect();
        let unambiguous = |(k, t): &(usize, &AddedToken)| {
            let t = t.content.as_str();
            let mut inside = t.char_indices().skip(1).map(|(i, _)| i);
            !contained.contains(k)
                && inside.all(|i| !prefixes.contains(&t[i..]) && !suffixes.contains(&t[..i]))
                && finder.find_overlapping_iter(t).all(|m| m.len() == t.len())
        };
        let tokens = self.added.iter().filter(|t| !t.content.is_empty());
        tokens.enumerate().filter(unambiguous).map(|(_, t)| t.id as i32).collect()
    }

    /// All added tokens, control tokens and others.
    pub(crate) fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }
}

/// Whether a normalizer or pre-tokenizer treats a piece of text the same at any position and adds
/// nothing at its edges.
fn is_position_independent(v: &Value) -> bool {
    let all = |key: &str| v[key].as_array().is_some_and(|a| a.iter().all(is_position_independent));
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

/// Whether a normalizer or pre-tokenizer adds something before the first word, or strips the ends
/// of a text.
fn treats_by_position(v: &Value) -> bool {
    match v["type"].as_str() {
        Some("Sequence") => ["normalizers", "pretokenizers"]
            .iter()
            .filter_map(|key| v[key].as_array())
            .flatten()
            .any(treats_by_position),
        Some("ByteLevel") => v["add_prefix_space"].as_bool() == Some(true),
        Some("Metaspace") => {
            v["prepend_scheme"].as_str() != Some("never")
                && v["add_prefix_space"].as_bool() != Some(false)
        }
        Some("Prepend" | "Strip") => true,
        _ => false,
    }
}

/// The 256 characters that represent bytes in a byte-level vocabulary, by byte (GPT-2's table).
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

/// The parts of a `tokenizer.json` that this file needs; the rest is not kept in memory.
#[derive(serde::Deserialize)]
struct Header {
    #[serde(default)]
    added_tokens: Vec<HeaderToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: HeaderModel,
}

#[derive(serde::Deserialize)]
struct HeaderToken {
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
struct HeaderModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Vocab,
}

/// Size of a vocabulary (a map from token to id, or a list for Unigram models), and its entries
/// that consist of one character.
#[derive(Default)]
struct Vocab {
    size: usize,
    single_chars: HashSet<char>,
}

impl<'de> serde::Deserialize<'de> for Vocab {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct VocabVisitor;
        impl<'de> serde::de::Visitor<'de> for VocabVisitor {
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
                        v.single_chars.insert(c);
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
        d.deserialize_any(VocabVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_is_appended_to_the_list() {
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
    fn tokens_that_always_split_the_text() {
        let dir = tempfile::tempdir().unwrap();
        let splitting = |tokens: &[(&str, &str)], normalizer: &str, pre_tokenizer: &str| {
            let list = tokens.iter().enumerate().map(|(i, (content, more))| {
                format!(r#"{{"id": {i}, "content": "{content}", "special": true{more}}}"#)
            });
            let text = format!(
                r#"{{"added_tokens": [{}], "normalizer": {normalizer}, "pre_tokenizer": {pre_tokenizer}, "model": {{"vocab": {{"a": 9}}}}}}"#,
                list.collect::<Vec<_>>().join(",")
            );
            std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
            TokenizerSource::read(dir.path()).unwrap().splitting_tokens()
        };
        let plain = [("<s>", ""), ("<e>", "")];
        let bytes =
            |prefix: bool| format!(r#"{{"type": "ByteLevel", "add_prefix_space": {prefix}}}"#);
        assert_eq!(splitting(&plain, "null", &bytes(false)), [0, 1]);
        let sequence = format!(
            r#"{{"type": "Sequence", "pretokenizers": [{{"type": "Digits"}}, {}]}}"#,
            bytes(false)
        );
        assert_eq!(splitting(&plain, r#"{"type": "NFC"}"#, &sequence), [0, 1]);
        // Here the treatment of text depends on its position, or adds something at its start.
        let none: [i32; 0] = [];
        assert_eq!(splitting(&plain, "null", &bytes(true)), none);
        assert_eq!(splitting(&plain, "null", &sequence.replace("false", "true")), none);
        assert_eq!(
            splitting(&plain, "null", r#"{"type": "Metaspace", "prepend_scheme": "first"}"#),
            none
        );
        assert_eq!(splitting(&plain, r#"{"type": "Prepend", "prepend": "_"}"#, "null"), none);
        for more in ["lstrip", "rstrip", "single_word", "normalized"] {
            assert_eq!(
                splitting(&[("<s>", ""), ("<e>", &format!(r#", "{more}": true"#))], "null", "null"),
                none,
                "{more}"
            );
        }
        // A token inside another, one whose end is the start of another, one whose end is its own
        // start.
        assert_eq!(splitting(&[("<s>", ""), ("x<s>", ""), ("<e>", "")], "null", "null"), [2]);
        assert_eq!(splitting(&[("<s>", ""), (">>", ""), ("[e]", "")], "null", "null"), [2]);
        assert_eq!(splitting(&[("|m|", ""), ("<s>", "")], "null", "null"), [1]);
    }

    #[test]
    fn byte_table() {
        let t = byte_symbols();
        assert_eq!(t.len(), 256);
        assert_eq!((t[b'a' as usize], t[b' ' as usize], t[b'\n' as usize]), ('a', 'Ġ', 'Ċ'));
    }
}
