//! Encoding the pieces of a text as they stand in the whole text.
//!
//! Some tokenizers treat text by its position: they put a space before the first word
//! (SentencePiece's `Prepend`, `Metaspace`, `add_prefix_space` of `ByteLevel`), strip its ends, or
//! have added tokens that swallow the white space beside them. For these, a response that is
//! encoded alone would begin with a space that the whole text does not have.
//!
//! In: a text and the positions at which no token may straddle. Out: ids. Added tokens are found
//! and text is normalized in the whole text, as the tokenizers library does. The text between two
//! added tokens is then cut, and each piece is pre-tokenized with the text before it, but without
//! the text after it, because in decoding there is none.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use tokenizers::normalizer::Range as In;
use tokenizers::{
    Model, NormalizedString, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, Tokenizer,
};

/// How many bytes before a piece are pre-tokenized with it. A longer word is cut there.
const LEFT_CONTEXT: usize = 1024;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A control token in a text: its bytes, its id.
pub(crate) type ControlToken = (Range<usize>, i32);

/// A tokenizer that treats text by its position.
pub(crate) struct InContext {
    /// Recognizes control tokens.
    tokenizer: Tokenizer,
    /// Encodes their strings as text.
    plain: Tokenizer,
    /// The pre-tokenizer for text that is not at the start of a conversation.
    later: Option<PreTokenizerWrapper>,
    /// Added tokens that swallow the white space before and behind them.
    swallowing: HashMap<i32, (bool, bool)>,
    /// Ids of control tokens.
    control: HashSet<i32>,
}

impl InContext {
    /// `tokenizer` recognizes control tokens, `plain` encodes their strings as text.
    pub(crate) fn new(tokenizer: &Tokenizer, plain: &Tokenizer) -> Self {
        let mut later = tokenizer.get_pre_tokenizer().cloned();
        if let Some(p) = &mut later {
            never_first(p);
        }
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let swallowing = added
            .iter()
            .filter(|(_, t)| t.lstrip || t.rstrip)
            .map(|(id, t)| (*id as i32, (t.lstrip, t.rstrip)))
            .collect();
        let control = added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id as i32).collect();
        InContext { tokenizer: tokenizer.clone(), plain: plain.clone(), later, swallowing, control }
    }

    /// Appends the ids of `text` to `ids`, and to `ends` the length of `ids` at each of `cuts`,
    /// which are positions in ascending order, and at the end.
    pub(crate) fn encode(
        &self,
        text: &str,
        cuts: &[usize],
        ids: &mut Vec<i32>,
        ends: &mut Vec<usize>,
    ) -> Result<(), Error> {
        let mut segments = Segments { cuts, next: 0, ends };
        let first = self.tokenizer.get_pre_tokenizer();
        encode_part(&self.tokenizer, first, text, 0, &mut segments, ids)?;
        segments.finish(ids.len());
        Ok(())
    }

    /// Like [`encode`](Self::encode), for a text in which only `control` are control tokens and all
    /// other strings that spell one are text.
    pub(crate) fn encode_plain(
        &self,
        text: &str,
        cuts: &[usize],
        control: &[ControlToken],
        ids: &mut Vec<i32>,
        ends: &mut Vec<usize>,
    ) -> Result<(), Error> {
        let mut segments = Segments { cuts, next: 0, ends };
        let swallows = |id: i32| self.swallowing.get(&id).copied().unwrap_or_default();
        let (mut at, mut strip_start) = (0, false);
        for (range, id) in control
            .iter()
            .map(|(r, id)| (r.clone(), Some(*id)))
            .chain([(text.len()..text.len(), None)])
        {
            let (before, behind) = id.map_or((false, false), swallows);
            let mut part = text.get(at..range.start).ok_or("a control token is not in the text")?;
            if strip_start {
                at += part.len() - part.trim_start().len();
                part = part.trim_start();
            }
            if before {
                part = part.trim_end();
            }
            let pre_tokenizer =
                if at == 0 { self.plain.get_pre_tokenizer() } else { self.later.as_ref() };
            let from = ids.len();
            encode_part(&self.plain, pre_tokenizer, part, at, &mut segments, ids)?;
            // The vocabulary of a Unigram model may hold the strings of control tokens.
            if ids[from..].iter().any(|id| self.control.contains(id)) {
                return Err("text that spells a control token cannot be told from it".into());
            }
            segments.reach(range.start, ids.len());
            ids.extend(id);
            (at, strip_start) = (range.end, behind);
        }
        segments.finish(ids.len());
        Ok(())
    }
}

/// Lets a `Metaspace` that puts a space before the first word of a text put none.
fn never_first(p: &mut PreTokenizerWrapper) {
    use tokenizers::pre_tokenizers::metaspace::PrependScheme;
    match p {
        PreTokenizerWrapper::Metaspace(m) if m.get_prepend_scheme() == PrependScheme::First => {
            m.set_prepend_scheme(PrependScheme::Never)
        }
        PreTokenizerWrapper::Sequence(s) => s.as_mut().iter_mut().for_each(never_first),
        _ => {}
    }
}

/// Where the ids of each segment of a text end.
struct Segments<'a> {
    cuts: &'a [usize],
    next: usize,
    ends: &'a mut Vec<usize>,
}

impl Segments<'_> {
    /// The next token begins at byte `at` of the text; `len` ids precede it.
    fn reach(&mut self, at: usize, len: usize) {
        while self.cuts.get(self.next).is_some_and(|&cut| cut <= at) {
            self.ends.push(len);
            self.next += 1;
        }
    }

    fn finish(&mut self, len: usize) {
        self.reach(usize::MAX, len);
        self.ends.push(len);
    }
}

/// Appends the ids of `text`, which begins at byte `offset` of the whole text.
fn encode_part(
    tokenizer: &Tokenizer,
    pre_tokenizer: Option<&PreTokenizerWrapper>,
    text: &str,
    offset: usize,
    segments: &mut Segments,
    ids: &mut Vec<i32>,
) -> Result<(), Error> {
    let inside = |cut: &&usize| (offset + 1..offset + text.len()).contains(*cut);
    let cuts: Vec<usize> = segments.cuts.iter().filter(inside).map(|cut| cut - offset).collect();
    let vocabulary = tokenizer.get_added_vocabulary();
    let mut parts = vocabulary.extract_and_normalize(tokenizer.get_normalizer(), text);
    parts.split(|_, section| pieces(section, &cuts, pre_tokenizer))?;
    parts.tokenize(|piece| tokenizer.get_model().tokenize(piece.get()))?;
    for (content, (start, end), tokens) in
        parts.get_splits(OffsetReferential::Original, OffsetType::Byte)
    {
        // An added token stands where its own string begins, behind white space it swallows.
        let own = text.get(start..end).unwrap_or("");
        let swallowed = match tokens.as_deref() {
            Some([_]) if content == own && !own.trim_start().is_empty() => {
                own.len() - own.trim_start().len()
            }
            _ => 0,
        };
        segments.reach(offset + start + swallowed, ids.len());
        ids.extend(tokens.iter().flatten().map(|t| t.id as i32));
    }
    Ok(())
}

/// The words of a text between two added tokens, none of which straddles one of `cuts` (positions
/// in the whole text, ascending).
fn pieces(
    section: NormalizedString,
    cuts: &[usize],
    pre_tokenizer: Option<&PreTokenizerWrapper>,
) -> Result<Vec<NormalizedString>, Error> {
    let (start, end) = section.offsets_original();
    let inside: Vec<usize> =
        cuts.iter().copied().filter(|c| (start + 1..end).contains(c)).collect();
    if inside.is_empty() {
        return words(section, pre_tokenizer);
    }
    let mut out = Vec::new();
    let (mut from, mut from_index) = (start, 0);
    for to in inside.into_iter().chain([end]) {
        let to_index = if to == end { section.get().len() } else { index_of(&section, to - start) };
        if from_index < to_index {
            let mut context = from_index.saturating_sub(LEFT_CONTEXT);
            while !section.get().is_char_boundary(context) {
                context += 1;
            }
            let piece = section.slice(In::Normalized(context..to_index)).ok_or("a cut text")?;
            if from_index == 0 {
                out.extend(words(piece, pre_tokenizer)?);
            } else {
                for word in words(piece, pre_tokenizer)? {
                    let (word_start, word_end) = word.offsets_original();
                    if word_start >= from {
                        out.push(word);
                    } else if word_end > from {
                        let at = index_of(&word, from - word_start);
                        out.extend(word.slice(In::Normalized(at..word.get().len())));
                    }
                }
            }
        }
        (from, from_index) = (to, to_index);
    }
    Ok(out)
}

/// What the pre-tokenizer makes of a text.
fn words(
    text: NormalizedString,
    pre_tokenizer: Option<&PreTokenizerWrapper>,
) -> Result<Vec<NormalizedString>, Error> {
    let Some(pre_tokenizer) = pre_tokenizer else { return Ok(vec![text]) };
    let mut words = PreTokenizedString::from(text);
    pre_tokenizer.pre_tokenize(&mut words)?;
    let mut out = Vec::new();
    words.split(|_, word| {
        out.push(word);
        Ok(Vec::<NormalizedString>::new())
    })?;
    Ok(out)
}

/// The first byte of the normalized text that comes from byte `at` of the original or from a later
/// one.
fn index_of(text: &NormalizedString, at: usize) -> usize {
    let origin = |i: usize| text.convert_offsets(In::Normalized(i..i + 1)).map_or(0, |r| r.start);
    let (mut low, mut high) = (0, text.get().len());
    while low < high {
        let middle = (low + high) / 2;
        if origin(middle) < at { low = middle + 1 } else { high = middle }
    }
    low
}
