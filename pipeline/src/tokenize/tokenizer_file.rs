//! Reading `tokenizer.json` and adding the mask token to it.
//!
//! In: a tokenizer folder. Out: [`TokenizerSource`]: the JSON, the vocabulary size, the added
//! tokens, and which of them always split the text. `canonical.rs` converts the JSON for the fast
//! engine, `tokenizer.rs` loads the engines.

use crate::error::{Error, Result};
pub(crate) use crate::tokenize::header::AddedToken;
use crate::tokenize::header::{HeaderToken, byte_symbols, read_header};
use crate::tokenize::json_text::{count_bytes, values_of};
use crate::tokenize::limits;
use crate::tokenize::special_tokens::{ConfigToken, special_tokens};
use crate::tokenize::splitting::{is_position_independent, splitting_tokens, treats_by_position};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::path::Path;

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
        if let Ok(found) = std::fs::metadata(&path)
            && found.len() > limits::FILE_BYTES
        {
            let reason =
                format!("it has {} bytes; the limit is {}", found.len(), limits::FILE_BYTES);
            return Err(Error::Tokenizer { path, reason });
        }
        let bytes = std::fs::read(&path).map_err(|e| {
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
        let json = String::from_utf8(bytes).map_err(|e| Error::Tokenizer {
            path: path.clone(),
            reason: format!(
                "not a tokenizer.json: byte {} of the file is not UTF-8",
                e.utf8_error().valid_up_to()
            ),
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
        let v = read_header(&self.json).map_err(|e| self.error(e))?;
        let vocabulary = &v.model.vocab;
        self.model_size = vocabulary.size;
        self.independent_segments =
            is_position_independent(&v.normalizer) && is_position_independent(&v.pre_tokenizer);
        self.treats_by_position =
            treats_by_position(&v.normalizer) || treats_by_position(&v.pre_tokenizer);
        let (mut size, mut largest) = (vocabulary.size, vocabulary.largest.as_str());
        for t in &v.added_tokens {
            self.treats_by_position |= t.lstrip || t.rstrip || t.single_word;
            if t.id as usize >= size {
                (size, largest) = (t.id as usize + 1, t.content.as_str());
            }
            // Tokens that absorb adjacent white space or are matched in normalized text depend on
            // the text around them.
            self.independent_segments &=
                !(t.lstrip || t.rstrip || t.single_word || t.normalized.unwrap_or(!t.special));
        }
        if size == 0 {
            return Err(self.error("its vocabulary is empty"));
        }
        let entries = vocabulary.entries + v.added_tokens.len();
        let within_limits = || {
            limits::check_largest_id((size - 1) as u32, largest, entries)?;
            limits::check_part("normalizer", &v.normalizer)?;
            limits::check_part("pre_tokenizer", &v.pre_tokenizer)?;
            limits::check_part("post_processor", &v.post_processor)?;
            limits::check_part("decoder", &v.decoder)?;
            let prefix = v.model.continuing_subword_prefix.as_deref();
            limits::check_affix("continuing_subword_prefix", prefix)?;
            limits::check_affix("end_of_word_suffix", v.model.end_of_word_suffix.as_deref())?;
            limits::check_word(v.model.max_input_chars_per_word)?;
            let (mut ids, mut contents) = (HashMap::new(), HashMap::new());
            for t in &v.added_tokens {
                limits::check_content(&t.content)?;
                if let Some(other) = ids.insert(t.content.as_str(), t.id).filter(|id| *id != t.id) {
                    return Err(format!(
                        "its added token {:?} has two ids, {other} and {}",
                        t.content, t.id
                    ));
                }
                let other = contents.insert(t.id, t.content.as_str());
                if let Some(other) = other.filter(|content| *content != t.content) {
                    return Err(format!(
                        "its added tokens {other:?} and {:?} both have the id {}",
                        t.content, t.id
                    ));
                }
            }
            Ok(())
        };
        within_limits().map_err(|e| self.error(e))?;
        self.vocab_size = size;
        let byte_level = v.model.kind.as_deref().is_none_or(|k| k == "BPE")
            && self.json.contains("\"ByteLevel\"");
        self.missing_bytes = if byte_level {
            byte_symbols().into_iter().filter(|c| !vocabulary.single_chars.contains(c)).collect()
        } else {
            Vec::new()
        };
        let own = |t: HeaderToken| AddedToken { content: t.content, id: t.id, special: t.special };
        self.added = v.added_tokens.into_iter().map(own).collect();
        Ok(())
    }

    /// Adds the tokens that `tokenizer_config.json` names, as transformers does when it loads the
    /// folder. A token of the vocabulary keeps its id, others get the next free ones.
    pub(crate) fn ensure_named(&mut self, tokens: &[ConfigToken]) -> Result<()> {
        let known: HashSet<&str> = self.added.iter().map(|t| t.content.as_str()).collect();
        let missing: Vec<&ConfigToken> =
            tokens.iter().filter(|t| !known.contains(t.content.as_str())).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let ids = self.ids_in_vocabulary(&missing);
        let mut next = self.vocab_size as u32;
        let mut entries = Vec::with_capacity(missing.len());
        for t in missing {
            let id = ids.get(&t.content).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            limits::check_content(&t.content).map_err(|e| self.error(e))?;
            entries.push(AddedToken { content: t.content.clone(), id, special: t.special });
        }
        self.append(entries)
    }

    /// The ids of those of `tokens` that are entries of the model's vocabulary.
    fn ids_in_vocabulary(&self, tokens: &[&ConfigToken]) -> HashMap<String, u32> {
        // One pass over the text for each of a few tokens is cheaper than one over the JSON tree.
        let spelled = |t: &&&ConfigToken| {
            let quoted = serde_json::to_string(&t.content).unwrap_or_default();
            tokens.len() > 8 || {
                count_bytes(self.json.len());
                self.json.contains(&quoted)
            }
        };
        let wanted: HashSet<&str> =
            tokens.iter().filter(spelled).map(|t| t.content.as_str()).collect();
        if wanted.is_empty() {
            return HashMap::new();
        }
        count_bytes(self.json.len());
        let v: Value = serde_json::from_str(&self.json).unwrap_or_default();
        let vocabulary = &v["model"]["vocab"];
        let listed = vocabulary.as_array().into_iter().flatten().enumerate();
        let listed = listed.filter_map(|(id, entry)| Some((entry[0].as_str()?, id as u64)));
        let mapped = vocabulary.as_object().into_iter().flatten();
        let mapped = mapped.filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?)));
        listed
            .chain(mapped)
            .filter(|(token, _)| wanted.contains(token))
            .filter_map(|(token, id)| Some((token.to_string(), u32::try_from(id).ok()?)))
            .collect()
    }

    /// The id of the added token `token`. If the tokenizer does not have it, it is appended as a
    /// control token: with its id in the vocabulary, else with the next free one.
    pub(crate) fn ensure_token(&mut self, token: &str) -> Result<u32> {
        self.ensure_named(&[ConfigToken { content: token.to_string(), special: true }])?;
        let found = self.added.iter().find(|t| t.content == token);
        found.map(|t| t.id).ok_or_else(|| self.error(format!("it has no token {token:?}")))
    }

    /// Appends added tokens.
    fn append(&mut self, tokens: Vec<AddedToken>) -> Result<()> {
        let entry = |t: &AddedToken| json!({"id": t.id, "content": t.content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": t.special});
        // The entries are inserted as text at the end of the list, so that the rest of the file
        // keeps its bytes.
        let list = values_of(&self.json, ["added_tokens"])
            .filter(|[l]| self.json[l.clone()].starts_with('['));
        match list {
            Some([list]) => {
                let inside = self.json[list.start + 1..list.end - 1].trim_end();
                let at = list.start + 1 + inside.len();
                let entries: Vec<String> = tokens.iter().map(|t| entry(t).to_string()).collect();
                let comma = if inside.is_empty() { "" } else { "," };
                self.json.insert_str(at, &format!("{comma}{}", entries.join(",")));
            }
            None => {
                let mut v: Value =
                    serde_json::from_str(&self.json).map_err(|e| self.error(e.to_string()))?;
                v["added_tokens"] = tokens.iter().map(entry).collect();
                self.json = serde_json::to_string(&v).map_err(|e| self.error(e.to_string()))?;
            }
        }
        let largest = tokens.iter().map(|t| t.id as usize + 1).max().unwrap_or(0);
        self.vocab_size = self.vocab_size.max(largest);
        self.added.extend(tokens);
        Ok(())
    }

    /// Ids of added tokens at which the text is always split: no other added token can match across
    /// their edges, and the text after them is encoded independently of the text before them.
    /// Ascending.
    pub(crate) fn splitting_tokens(&self) -> Vec<i32> {
        if self.independent_segments { splitting_tokens(&self.added) } else { Vec::new() }
    }

    /// All added tokens, control tokens and others.
    pub(crate) fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::json_text::BYTES_READ;
    use crate::tokenize::special_tokens::tokens_of_config;

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

    /// The work for added tokens grows with their number: the file is passed over a fixed number of
    /// times, whatever `tokenizer_config.json` adds to it.
    #[test]
    fn ten_thousand_added_tokens_cost_ten_times_a_thousand() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"model": {"vocab": {"a": 0, "<00007>": 1}}, "added_tokens": []}"#;
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let cost = |n: usize| {
            let names: Vec<String> = (0..n).map(|i| format!("<{i:05}>")).collect();
            let config = json!({"extra_special_tokens": names}).to_string();
            std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
            let before = BYTES_READ.get();
            let mut t = TokenizerSource::read(dir.path()).unwrap();
            t.ensure_named(&tokens_of_config(dir.path()).unwrap()).unwrap();
            assert_eq!(t.ensure_token("M").unwrap() as usize, n + 1);
            // The entry of the vocabulary keeps its id; the others follow it.
            assert_eq!((t.added[7].id, t.added[8].id, t.vocab_size), (1, 9, n + 2));
            assert_eq!(t.splitting_tokens().len(), n + 1);
            BYTES_READ.get() - before
        };
        let (few, many) = (cost(1000), cost(10_000));
        assert!(many < 12 * few, "{many} bytes of JSON after {few}");
    }

    /// Splitting tokens by hashes are those of the definition, tried on all pairs of tokens.
    #[test]
    fn splitting_tokens_are_those_of_the_definition() {
        let mut state = 1u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..500 {
            let mut texts: Vec<String> = (0..1 + below(6))
                .map(|_| {
                    (0..1 + below(4)).map(|_| ['a', 'b', 'é', '|'][below(4) as usize]).collect()
                })
                .collect();
            texts.sort();
            texts.dedup();
            let added: Vec<AddedToken> = texts
                .iter()
                .enumerate()
                .map(|(i, t)| AddedToken { content: t.clone(), id: i as u32, special: true })
                .collect();
            let overlaps = |a: &str, b: &str| {
                (1..a.len()).filter(|i| a.is_char_boundary(*i)).any(|i| {
                    let end = &a[i..];
                    end.len() < b.len() && b.starts_with(end)
                })
            };
            let ambiguous = |a: &str, b: &str| {
                overlaps(a, b) || overlaps(b, a) || (a != b && (a.contains(b) || b.contains(a)))
            };
            let want: Vec<i32> = (0..texts.len())
                .filter(|&i| !texts.iter().any(|other| ambiguous(&texts[i], other)))
                .map(|i| i as i32)
                .collect();
            assert_eq!(splitting_tokens(&added), want, "{texts:?}");
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
}
