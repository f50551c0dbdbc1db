//! The parts of a `tokenizer.json` that this program needs; the rest is not kept in memory.
//!
//! In: the JSON text. Out: a [`Header`], or an error that names the part of the file.

use crate::tokenize::json_text::string_end;
use serde_json::Value;
use std::collections::HashSet;

/// An entry of `added_tokens`: a token whose string is matched in the text before the model's
/// merges are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub content: String,
    pub id: u32,
    /// Whether it is a control token (`special` in the file).
    pub special: bool,
}

/// What is read of the file.
#[derive(serde::Deserialize)]
pub(crate) struct Header {
    #[serde(default)]
    pub(crate) added_tokens: Vec<HeaderToken>,
    #[serde(default)]
    pub(crate) normalizer: Value,
    #[serde(default)]
    pub(crate) pre_tokenizer: Value,
    #[serde(default)]
    pub(crate) post_processor: Value,
    #[serde(default)]
    pub(crate) decoder: Value,
    pub(crate) model: HeaderModel,
}

#[derive(serde::Deserialize)]
pub(crate) struct HeaderToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) special: bool,
    #[serde(default)]
    pub(crate) lstrip: bool,
    #[serde(default)]
    pub(crate) rstrip: bool,
    #[serde(default)]
    pub(crate) single_word: bool,
    pub(crate) normalized: Option<bool>,
}

#[derive(serde::Deserialize)]
pub(crate) struct HeaderModel {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) vocab: Vocab,
    pub(crate) continuing_subword_prefix: Option<String>,
    pub(crate) end_of_word_suffix: Option<String>,
    pub(crate) max_input_chars_per_word: Option<u64>,
}

/// A vocabulary: a map from token to id, or a list for Unigram models.
#[derive(Default)]
pub(crate) struct Vocab {
    /// One past the largest id.
    pub(crate) size: usize,
    /// The token with the largest id; empty for a list.
    pub(crate) largest: String,
    /// Number of entries.
    pub(crate) entries: usize,
    /// Entries that consist of one character.
    pub(crate) single_chars: HashSet<char>,
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
                    v.entries += 1;
                    if id as usize >= v.size {
                        v.size = id as usize + 1;
                        v.largest.clear();
                        v.largest.push_str(&k);
                    }
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
                    v.entries += 1;
                }
                Ok(v)
            }
        }
        d.deserialize_any(VocabVisitor)
    }
}

/// Reads the JSON text of a whole file.
pub(crate) fn read_header(json: &str) -> Result<Header, String> {
    serde_json::from_str(json).map_err(|e| match part_at(json, e.line(), e.column()) {
        Some(part) => format!("not a tokenizer.json: in its {part}: {e}"),
        None => format!("not a tokenizer.json: {e}"),
    })
}

/// The key of the outermost object whose value a place in the text belongs to.
fn part_at(json: &str, line: usize, column: usize) -> Option<&str> {
    let before: usize = json.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let bytes = &json.as_bytes()[..(before + column).min(json.len())];
    let (mut depth, mut i, mut last, mut part) = (0usize, 0, 0..0, None);
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                let start = i + 1;
                let Some(end) = string_end(bytes, start) else { break };
                i = end;
                if depth == 1 {
                    last = start..end;
                }
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.checked_sub(1)?,
            b':' if depth == 1 => part = json.get(last.clone()),
            _ => {}
        }
        i += 1;
    }
    part
}

/// The 256 characters that represent bytes in a byte-level vocabulary, by byte (GPT-2's table).
pub(crate) fn byte_symbols() -> Vec<char> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_part() {
        for (json, part) in [
            (
                r#"{"added_tokens": [{"id": -1, "content": "a"}], "model": {}}"#,
                "in its added_tokens: ",
            ),
            ("{\"version\": \"1.0\",\n \"model\": {\"vocab\":\n {\"a\": -1}}}", "in its model: "),
            (r#"{"model": {"vocab": {"a": 4294967296}}}"#, "in its model: "),
            (r#"{"normalizer": nil}"#, "in its normalizer: "),
            (r#"{"model": {"vocab": {"a": 1"#, "in its model: "),
            (r#"["#, "not a tokenizer.json: "),
            ("", "not a tokenizer.json: "),
        ] {
            let error = read_header(json).err().unwrap();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn byte_table() {
        let t = byte_symbols();
        assert_eq!(t.len(), 256);
        assert_eq!((t[b'a' as usize], t[b' ' as usize], t[b'\n' as usize]), ('a', 'Ġ', 'Ċ'));
    }
}
