//! The text of a row, piece by piece, up to a stop string, and the part of it that each token adds.
//!
//! In: token ids as they are decided. Out: text that no later token changes and that no stop string
//! may begin with; with `logprobs`, tokens whose texts together are the same text.

use std::collections::VecDeque;
use std::sync::Arc;

use super::outbox::TokenText;
use crate::decode::prompt::PromptCodec;
use crate::decode::text_stream::TextStream;
use crate::error::Result;

/// A new piece of text and its tokens.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub tokens: Vec<TokenText>,
    /// A stop string was found; the text ends before it.
    pub stopped: bool,
}

/// See the file's comment.
pub(super) struct RowText {
    text: TextStream,
    tokens: Option<Tokens>,
}

/// Tokens that were not given out yet.
struct Tokens {
    /// The same text, past stop strings.
    text: TextStream,
    /// Each with the byte at which its text begins.
    waiting: VecDeque<(usize, TokenText)>,
    /// Bytes of all tokens so far.
    length: usize,
}

impl RowText {
    pub(super) fn new(codec: &Arc<PromptCodec>, stops: Vec<String>, logprobs: bool) -> Self {
        let tokens = || Tokens {
            text: TextStream::new(codec.clone(), Vec::new()),
            waiting: VecDeque::new(),
            length: 0,
        };
        RowText { text: TextStream::new(codec.clone(), stops), tokens: logprobs.then(tokens) }
    }

    /// Adds a token.
    pub(super) fn push(&mut self, id: i64, logprob: f32) -> Result<Piece> {
        let text = self.text.push(id)?;
        let (stopped, given) = (self.text.is_stopped(), self.text.given());
        let Some(own) = &mut self.tokens else {
            return Ok(Piece { text, tokens: Vec::new(), stopped });
        };
        let piece = own.text.push(id)?;
        let begins = own.length;
        own.length += piece.len();
        own.waiting.push_back((begins, TokenText { text: piece, logprob }));
        let tokens = match stopped {
            true => own.until(given),
            false => own.before(given),
        };
        Ok(Piece { text, tokens, stopped })
    }

    /// What is still held back when no token follows. After a stop string there is nothing.
    pub(super) fn finish(&mut self) -> Result<Piece> {
        let stopped_before = self.text.is_stopped();
        let text = self.text.finish()?;
        let stopped = self.text.is_stopped();
        let mut tokens = Vec::new();
        if let (Some(own), false) = (&mut self.tokens, stopped_before) {
            let rest = own.text.finish()?;
            if let Some((_, last)) = own.waiting.back_mut() {
                last.text.push_str(&rest);
            }
            tokens = match stopped {
                true => own.until(self.text.given()),
                false => own.waiting.drain(..).map(|(_, token)| token).collect(),
            };
        }
        Ok(Piece { text, tokens, stopped })
    }
}

impl Tokens {
    /// Takes the tokens whose text ends at or before a byte. The last token waits: its text may
    /// still grow.
    fn before(&mut self, given: usize) -> Vec<TokenText> {
        let (last, mut tokens) = (self.waiting.len().saturating_sub(1), Vec::new());
        for _ in 0..last {
            match self.waiting.front() {
                Some((begins, token)) if begins + token.text.len() <= given => {}
                _ => break,
            }
            tokens.extend(self.waiting.pop_front().map(|(_, token)| token));
        }
        tokens
    }

    /// Takes the tokens that begin before a byte, at which the last of them is cut, and drops the
    /// others.
    fn until(&mut self, given: usize) -> Vec<TokenText> {
        let begin_before = self.waiting.drain(..).filter(|(begins, _)| *begins < given);
        let cut = |(begins, mut token): (usize, TokenText)| {
            if begins + token.text.len() > given {
                token.text.truncate(given - begins);
            }
            token
        };
        begin_before.map(cut).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Prompt;

    /// All pieces of a text's tokens, and their numbers.
    fn pieces(codec: &Arc<PromptCodec>, text: &str, stops: &[&str]) -> (Vec<Piece>, usize) {
        let ids = codec.encode_raw(&Prompt::Text(text.into())).unwrap();
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        let mut row = RowText::new(codec, stops, true);
        let mut pieces = Vec::new();
        for (i, id) in ids.iter().enumerate() {
            let piece = row.push(*id, i as f32).unwrap();
            let stopped = piece.stopped;
            pieces.push(piece);
            if stopped {
                break;
            }
        }
        pieces.push(row.finish().unwrap());
        (pieces, ids.len())
    }

    #[test]
    fn the_texts_of_the_tokens_are_the_text_up_to_a_stop_string() {
        let (_dir, files) = crate::serve::tests::support::folder();
        let codec = files.codec().unwrap();
        for (text, stops, expected) in [
            ("the map of the town, aé€😀b", &[][..], "the map of the town, aé€😀b"),
            ("one\n\ntwo", &["\n\n"], "one"),
            ("one\ntwo\n\n", &["\n\n"], "one\ntwo"),
            ("the map of the town", &["ap o"], "the m"),
            ("the map of the town", &["the"], ""),
            ("aaab", &["aab"], "a"),
            ("x€y", &["€"], "x"),
            ("the map of the town", &["tow", "p of"], "the ma"),
            ("no such thing", &["thingx", "q"], "no such thing"),
            ("ends with a sto", &["stop"], "ends with a sto"),
        ] {
            let (pieces, count) = pieces(codec, text, stops);
            let told: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!(told, expected, "{text:?} {stops:?}");
            let tokens: Vec<&TokenText> = pieces.iter().flat_map(|piece| &piece.tokens).collect();
            let texts: String = tokens.iter().map(|token| token.text.as_str()).collect();
            assert_eq!(texts, expected, "{text:?} {stops:?}");
            let places: Vec<f32> = tokens.iter().map(|token| token.logprob).collect();
            assert_eq!(places, (0..places.len()).map(|i| i as f32).collect::<Vec<_>>());
            let stopped = pieces.iter().any(|piece| piece.stopped);
            assert_eq!(stopped, text != expected, "{text:?} {stops:?}");
            assert!(stopped || places.len() == count, "{text:?} {stops:?}");
        }
    }
}
