//! The text of a completion while its tokens arrive.
//!
//! In: token ids, one after another. Out: pieces of text that no later token changes. All pieces
//! together are the text of all ids; with stop strings, that text up to the first stop string.
//!
//! A token may end inside a character, and in tokenizers with byte tokens (`<0xE4>`) a byte can
//! even undo the characters before it, because a run of bytes is decoded as a whole. What a later
//! token might change is therefore asked of the tokenizer: text is settled as far as it stays the
//! same when other tokens follow, among them single bytes ([`PromptCodec::probes`]).

use std::sync::Arc;

use super::prompt::PromptCodec;
use crate::error::Result;

/// Fewest tokens between two places where decoding begins again, so that the cost of a token does
/// not grow with the length of the text.
const WINDOW: usize = 8;

/// What stands for bytes that are no character.
const REPLACEMENT: char = '\u{fffd}';

/// Strings that end a completion, with the tokenizer that turns tokens into text.
#[derive(Clone)]
pub(crate) struct StopStrings {
    pub codec: Arc<PromptCodec>,
    /// None is empty.
    pub strings: Vec<String>,
}

impl std::fmt::Debug for StopStrings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.strings).finish()
    }
}

impl serde::Serialize for StopStrings {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        self.strings.serialize(serializer)
    }
}

/// Turns ids into pieces of text.
pub(crate) struct TextStream {
    codec: Arc<PromptCodec>,
    stops: Vec<String>,
    /// The last tokens: from the place where decoding begins.
    ids: Vec<i64>,
    /// A place in `ids` where the text before it was settled.
    known: usize,
    /// Settled bytes of the text of `ids`.
    settled: usize,
    /// Settled text that may be the beginning of a stop string.
    held: String,
    /// Bytes handed out.
    given: usize,
    stopped: bool,
}

impl TextStream {
    /// A stream without ids. The text ends before the first of `stops` in it.
    pub(crate) fn new(codec: Arc<PromptCodec>, stops: Vec<String>) -> Self {
        TextStream {
            codec,
            stops,
            ids: Vec::new(),
            known: 0,
            settled: 0,
            held: String::new(),
            given: 0,
            stopped: false,
        }
    }

    /// Whether a stop string was found. What comes then is ignored.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Bytes of the pieces so far.
    pub(crate) fn given(&self) -> usize {
        self.given
    }

    /// Takes the next token. Returns the text that is final now and was not before; it may be
    /// empty.
    pub(crate) fn push(&mut self, id: i64) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.codec.decode(&self.ids)?;
        let mut settled = text.trim_end_matches(REPLACEMENT).len();
        let mut longer = self.ids.clone();
        for probe in self.codec.probes() {
            longer.truncate(self.ids.len());
            longer.push(*probe);
            settled = common(&text[..settled], &self.codec.decode(&longer)?);
        }
        let piece = self.settle(&text, settled);
        if settled == text.len() {
            self.shorten(&text)?;
        }
        Ok(piece)
    }

    /// The rest of the text, when no token follows.
    pub(crate) fn finish(&mut self) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let text = self.codec.decode(&self.ids)?;
        let mut piece = self.settle(&text, text.len());
        if !self.stopped {
            let held = std::mem::take(&mut self.held);
            self.given += held.len();
            piece.push_str(&held);
        }
        Ok(piece)
    }

    /// Takes `text[..settled]` as final. Returns what can be handed out.
    fn settle(&mut self, text: &str, settled: usize) -> String {
        if let Some(new) = text.get(self.settled..settled) {
            self.held.push_str(new);
            self.settled = settled;
        }
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let end = match found {
            Some(at) => {
                self.stopped = true;
                at
            }
            None => {
                let begins = |at: &usize| {
                    let rest = &self.held[*at..];
                    self.stops.iter().any(|stop| stop.starts_with(rest))
                };
                let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
                let from = self.held.len().saturating_sub(longest);
                let mut starts = self.held.char_indices().map(|(at, _)| at);
                starts.find(|at| *at >= from && begins(at)).unwrap_or(self.held.len())
            }
        };
        let rest = self.held.split_off(end);
        let piece = std::mem::replace(&mut self.held, rest);
        self.given += piece.len();
        piece
    }

    /// Lets decoding begin later, where the text from there on does not depend on what is left out.
    fn shorten(&mut self, text: &str) -> Result<()> {
        let known = self.known;
        if self.ids.len() < known + WINDOW {
            return Ok(());
        }
        let later = self.codec.decode(self.ids.get(known..).unwrap_or_default())?;
        // behind tokens without text the next token would be decoded as the first of all
        if !later.is_empty() && text.ends_with(&later) {
            self.ids.drain(..known);
            self.settled = later.len();
        }
        self.known = self.ids.len();
        Ok(())
    }
}

/// Bytes that two texts have in common at their start, in whole characters.
fn common(one: &str, other: &str) -> usize {
    let differs = |((_, a), b): &((usize, char), char)| a != b;
    match one.char_indices().zip(other.chars()).find(differs) {
        Some(((at, _), _)) => at,
        None => one.len().min(other.len()),
    }
}
