//! Text to token ids and back.
//!
//! In: a tokenizer folder (`tokenizer.json`). Out: a [`Tokenizer`] on one of two engines: *fast*,
//! the 1.0 release candidate of the tokenizers crate, which is many times faster, and *stable*,
//! version 0.23. The fast engine is used if it loads and gives the same ids as the stable one on a
//! sample of the run's own rows ([`TokenizerSource::choose`]).
//!
//! Some byte-level vocabularies lack some of the 256 bytes (SmolLM2). The stable engine drops such
//! bytes from the text; the fast engine refuses to load. For the fast engine the missing symbols
//! get ids between the model's vocabulary and the added tokens, and these ids are removed from its
//! output again.

use crate::error::{Error, Result};
use crate::panics::caught;
use crate::tokenize::in_context::{ControlToken, InContext};
use crate::tokenize::stable::load_stable;
pub(crate) use crate::tokenize::tokenizer_file::{AddedToken, TokenizerSource};
use std::path::{Path, PathBuf};
use tokenizers_fast as fast;

enum Engine {
    Fast(Box<fast::pipeline::PipelineTokenizer>),
    /// The first instance recognizes control tokens; the second encodes their strings as text.
    Stable(Box<(tokenizers::Tokenizer, tokenizers::Tokenizer)>),
}

/// Why the fast engine is not used for some tokenizers.
const TREATS_BY_POSITION: &str =
    "this tokenizer treats text by its position, so pieces are encoded as they stand in the text";

/// A loaded tokenizer; see the top of this file for the two engines.
pub(crate) struct Tokenizer {
    engine: Engine,
    /// The file it was loaded from, for messages.
    path: PathBuf,
    /// The `tokenizer.json` it was loaded from, mask token included.
    json: String,
    added: Vec<AddedToken>,
    vocab_size: usize,
    /// (first id, count) of the ids that the fast engine has for bytes the vocabulary lacks; higher
    /// ids are `count` higher in the fast engine.
    byte_ids: (u32, u32),
    splitting_tokens: Vec<i32>,
    /// Set if the tokenizer treats text by its position.
    in_context: Option<Box<InContext>>,
    eos: Option<String>,
    engine_note: String,
}

impl Tokenizer {
    /// The tokenizer in `dir` without changes, on the fast engine if that loads, else on the stable
    /// one.
    pub(crate) fn load(dir: &Path) -> Result<Tokenizer> {
        let source = TokenizerSource::read(dir)?;
        match source.fast() {
            Ok(t) => Ok(t),
            Err(reason) => {
                source.stable(format!("stable (the fast engine refuses this tokenizer: {reason})"))
            }
        }
    }

    /// Appends the ids of `text` to `out`. Strings that spell a control token become that token; no
    /// tokens are added at the ends.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<i32>) -> Result<()> {
        self.encode_into(text, false, out)
    }

    /// Appends the ids of `text` to `out`. Strings that spell a control token are encoded as
    /// ordinary text.
    pub(crate) fn encode_plain(&self, text: &str, out: &mut Vec<i32>) -> Result<()> {
        self.encode_into(text, true, out)
    }

    /// Appends the ids of `text` to `ids` as they are in the whole text, except that no token
    /// straddles one of `cuts`, and to `ends` the length of `ids` at each cut and at the end. With
    /// `control`, only these are control tokens. None for tokenizers that treat text the same at
    /// every position, whose pieces are encoded one by one.
    pub(crate) fn encode_in_context(
        &self,
        text: &str,
        cuts: &[usize],
        control: Option<&[ControlToken]>,
        ids: &mut Vec<i32>,
        ends: &mut Vec<usize>,
    ) -> Option<Result<()>> {
        let engine = self.in_context.as_ref()?;
        let encoded = caught(|| match control {
            None => engine.encode(text, cuts, ids, ends),
            Some(control) => engine.encode_plain(text, cuts, control, ids, ends),
        });
        Some(match encoded {
            Ok(encoded) => encoded.map_err(|e| self.failed(e.to_string())),
            Err(panic) => Err(self.failed(panic)),
        })
    }

    /// The engine failed on a text.
    fn failed(&self, reason: String) -> Error {
        let reason = format!("its engine failed on a text: {reason}");
        Error::Tokenizer { path: self.path.clone(), reason }
    }

    fn encode_into(&self, text: &str, plain: bool, out: &mut Vec<i32>) -> Result<()> {
        caught(|| self.encode_unguarded(text, plain, out))
            .unwrap_or_else(|panic| Err(self.failed(panic)))
    }

    fn encode_unguarded(&self, text: &str, plain: bool, out: &mut Vec<i32>) -> Result<()> {
        match &self.engine {
            Engine::Fast(t) => {
                thread_local! {
                    static SCRATCH: std::cell::RefCell<Vec<fast::pipeline::PipelineToken>> = const { std::cell::RefCell::new(Vec::new()) };
                }
                let mut options = fast::pipeline::EncodeOptions::no_specials();
                options.encode_special_tokens = plain;
                SCRATCH.with_borrow_mut(|scratch| {
                    scratch.clear();
                    t.encode_into(text, &options, scratch)
                        .map_err(|e| self.failed(e.to_string()))?;
                    let ids = fast::pipeline::PipelineToken::cast_slice(scratch);
                    let (first, count) = self.byte_ids;
                    if count == 0 {
                        out.extend(ids.iter().map(|&id| id as i32));
                    } else {
                        let in_vocabulary =
                            ids.iter().filter(|&&id| id < first || id >= first + count);
                        out.extend(
                            in_vocabulary.map(|&id| {
                                if id < first { id as i32 } else { (id - count) as i32 }
                            }),
                        );
                    }
                    Ok(())
                })
            }
            Engine::Stable(t) => {
                let t = if plain { &t.1 } else { &t.0 };
                let encoding =
                    t.encode_fast(text, false).map_err(|e| self.failed(e.to_string()))?;
                out.extend(encoding.get_ids().iter().map(|&id| id as i32));
                Ok(())
            }
        }
    }

    /// The text of `ids`. Ids outside the vocabulary are skipped, and with `skip_special` control
    /// tokens too.
    pub(crate) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let ids: Vec<u32> =
            ids.iter().copied().filter(|&i| (i as usize) < self.vocab_size).collect();
        let decoded = caught(|| match &self.engine {
            Engine::Fast(t) => {
                let (first, count) = self.byte_ids;
                let ids: Vec<u32> =
                    ids.iter().map(|&i| if i < first { i } else { i + count }).collect();
                t.decode(&ids, skip_special).map_err(|e| e.to_string())
            }
            Engine::Stable(t) => t.0.decode(&ids, skip_special).map_err(|e| e.to_string()),
        });
        decoded.and_then(|text| text).map_err(|e| Error::Tokenizer {
            path: self.path.clone(),
            reason: format!("its engine failed to decode ids: {e}"),
        })
    }

    /// The id of the token with the string `token`, if there is one.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        if let Some(a) = self.added.iter().find(|a| a.content == token) {
            return Some(a.id);
        }
        if let Engine::Stable(t) = &self.engine {
            return t.0.token_to_id(token);
        }
        let mut ids = Vec::new();
        self.encode_plain(token, &mut ids).ok()?;
        match ids[..] {
            [id] if self.decode(&[id as u32], false).ok()? == token => Some(id as u32),
            _ => None,
        }
    }

    /// All added tokens, control tokens and others.
    pub(crate) fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    /// Whether the text is always split at the added token `id`, so that the text before it and the
    /// text after it can be encoded separately.
    pub(crate) fn always_splits_at(&self, id: i32) -> bool {
        self.splitting_tokens.binary_search(&id).is_ok()
    }

    /// One past the largest id.
    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The end-of-text token's string, if the folder names one.
    pub(crate) fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The `tokenizer.json` of this tokenizer, mask token included.
    pub(crate) fn json(&self) -> &str {
        &self.json
    }

    /// Which engine is used, and why.
    pub(crate) fn engine(&self) -> &str {
        &self.engine_note
    }
}

impl TokenizerSource {
    /// The tokenizer on the fast engine, or why that engine refuses it.
    pub(crate) fn fast(&self) -> std::result::Result<Tokenizer, String> {
        if self.treats_by_position {
            return Err(TREATS_BY_POSITION.to_string());
        }
        let text = match caught(|| self.canonical_by_splicing())? {
            Some(text) => text,
            None => caught(|| self.canonical())??,
        };
        let engine = caught(|| fast::from_json(&text).map_err(|e| e.to_string()))??;
        let mut note = "fast (tokenizers 1.0.0-rc.3)".to_string();
        if !self.missing_bytes.is_empty() {
            note.push_str(&format!(", {} missing byte symbols mended", self.missing_bytes.len()));
        }
        let fast = self.tokenizer(Engine::Fast(Box::new(engine)), note);
        let mut ids = Vec::new();
        for token in self.added.iter().filter(|t| t.special && !t.content.is_empty()) {
            ids.clear();
            fast.encode(&token.content, &mut ids).map_err(|e| e.to_string())?;
            if ids != [token.id as i32] {
                return Err(format!(
                    "its added token {:?} has the id {}, but is encoded as {ids:?}",
                    token.content, token.id
                ));
            }
        }
        Ok(fast)
    }

    /// The tokenizer on the stable engine.
    pub(crate) fn stable(&self, note: String) -> Result<Tokenizer> {
        self.with_stable(self.stable_engine()?, note)
    }

    /// The tokenizer on a stable engine that is loaded.
    fn with_stable(&self, mut t: tokenizers::Tokenizer, note: String) -> Result<Tokenizer> {
        t.set_encode_special_tokens(false);
        let mut plain = t.clone();
        plain.set_encode_special_tokens(true);
        let in_context = self.treats_by_position.then(|| Box::new(InContext::new(&t, &plain)));
        let stable = self.tokenizer(Engine::Stable(Box::new((t, plain))), note);
        Ok(Tokenizer { in_context, ..stable })
    }

    fn stable_engine(&self) -> Result<tokenizers::Tokenizer> {
        let mut t = caught(|| load_stable(&self.json))
            .map_err(|panic| self.error(format!("the engine cannot load it: {panic}")))?
            .map_err(|e| self.error(e.to_string()))?;
        let _ = t.with_truncation(None);
        t.with_padding(None);
        // The engine gives added tokens ids of its own where those of the file do not follow on.
        for token in self.added.iter().filter(|token| !token.content.is_empty()) {
            let id = t.token_to_id(&token.content);
            if id != Some(token.id) {
                return Err(self.error(format!(
                    "its added token {:?} has the id {}, but the tokenizers library gives it {}; ids of added tokens must be those of the vocabulary, or follow the last one without a gap",
                    token.content,
                    token.id,
                    id.map_or("none".to_string(), |id| id.to_string())
                )));
            }
        }
        Ok(t)
    }

    fn tokenizer(&self, engine: Engine, engine_note: String) -> Tokenizer {
        let byte_ids = (self.model_size as u32, self.missing_bytes.len() as u32);
        Tokenizer {
            engine,
            path: self.path.clone(),
            json: self.json.clone(),
            added: self.added.clone(),
            vocab_size: self.vocab_size,
            byte_ids,
            splitting_tokens: self.splitting_tokens(),
            in_context: None,
            eos: self.eos.clone(),
            engine_note,
        }
    }

    /// The fast engine if it gives the same ids as the stable one on every text of a sample, else
    /// the stable engine; [`Tokenizer::engine`] says which and why. `meanwhile` runs while the
    /// engines load and returns the sample texts, and a value that is passed through.
    pub(crate) fn choose<T>(
        &self,
        meanwhile: impl FnOnce() -> Result<(Vec<String>, T)>,
    ) -> Result<(Tokenizer, T)> {
        let (fast, stable, sample) = std::thread::scope(|s| {
            let (fast, stable) = (s.spawn(|| self.fast()), s.spawn(|| self.stable_engine()));
            let sample = meanwhile();
            (fast.join(), stable.join(), sample)
        });
        let (sample, passed) = sample?;
        let panicked = |_| Error::Internal("loading the tokenizer".to_string());
        let mut stable = stable.map_err(panicked)??;
        let mut fast = match fast.map_err(panicked)? {
            Ok(f) => f,
            Err(reason) => {
                let note = format!(
                    "stable (tokenizers 0.23.2): the fast engine refuses this tokenizer: {reason}"
                );
                return Ok((self.with_stable(stable, note)?, passed));
            }
        };
        let mut compared = 0;
        for plain in [false, true] {
            stable.set_encode_special_tokens(plain);
            let (left, right) = sample.split_at(sample.len() / 2);
            let halves = std::thread::scope(|s| {
                let left = s.spawn(|| self.compare(&fast, &stable, plain, left));
                [
                    self.compare(&fast, &stable, plain, right),
                    left.join()
                        .unwrap_or_else(|_| Err(Error::Internal("comparing engines".to_string()))),
                ]
            });
            for half in halves {
                match half? {
                    Ok(tokens) => compared += tokens,
                    Err(difference) => {
                        let note = format!(
                            "stable (tokenizers 0.23.2): the fast engine gives other ids on a sample row ({difference})"
                        );
                        return Ok((self.with_stable(stable, note)?, passed));
                    }
                }
            }
        }
        fast.engine_note.push_str(&format!(
            ", equal to 0.23.2 on {} sample texts, {compared} tokens",
            sample.len()
        ));
        Ok((fast, passed))
    }

    /// The number of tokens of `sample` if both engines give the same ids, else a description of
    /// the first difference.
    fn compare(
        &self,
        fast: &Tokenizer,
        stable: &tokenizers::Tokenizer,
        plain: bool,
        sample: &[String],
    ) -> Result<std::result::Result<usize, String>> {
        let (mut ids, mut compared) = (Vec::new(), 0);
        for text in sample {
            ids.clear();
            let encoded = fast.encode_into(text, plain, &mut ids);
            let expected = caught(|| stable.encode_fast(text.as_str(), false));
            let expected = match (encoded, expected) {
                (Ok(()), Ok(Ok(expected))) => expected,
                // The run's own rows are dropped with this error.
                (Err(_), Ok(Err(_)) | Err(_)) => continue,
                (Err(e), Ok(Ok(_))) => return Ok(Err(e.to_string())),
                (Ok(()), Ok(Err(_)) | Err(_)) => {
                    return Ok(Err("it encodes a text that the stable engine refuses".to_string()));
                }
            };
            let expected = expected.get_ids();
            if !expected.iter().map(|&i| i as i32).eq(ids.iter().copied()) {
                let at = ids.iter().zip(expected).take_while(|(x, y)| **x == **y as i32).count();
                return Ok(Err(format!(
                    "token {at}: {:?} instead of {:?}",
                    ids.get(at),
                    expected.get(at)
                )));
            }
            compared += ids.len();
        }
        Ok(Ok(compared))
    }
}
