//! The text of a row, piece by piece, up to a stop string.
//!
//! In: token ids as they are decided. Out: whole characters that no later token changes and that no
//! stop string may begin with. What is held back comes with a later piece, or at the end.

use super::outbox::TokenText;
use crate::error::Result;

/// A new piece of text and its tokens.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub tokens: Vec<TokenText>,
    /// A stop string was found; the text ends before it.
    pub stopped: bool,
}

/// Text of ids.
pub(super) type Decode<'a> = &'a dyn Fn(&[i64]) -> Result<String>;

/// See the file's comment.
pub(super) struct RowText {
    /// The last ids: enough of those whose text is known for the next ones to be read right, then
    /// those whose text is not whole yet.
    ids: Vec<i64>,
    /// Number of `ids` whose text is known.
    known: usize,
    stops: Vec<String>,
    /// Text that was not given out yet.
    held: String,
    /// Tokens that were not given out yet, each with the place in `held` where its text begins.
    tokens: Vec<(usize, TokenText)>,
}

impl RowText {
    pub(super) fn new(stops: Vec<String>) -> Self {
        RowText { ids: Vec::new(), known: 0, stops, held: String::new(), tokens: Vec::new() }
    }

    /// Adds a token.
    pub(super) fn push(&mut self, id: i64, logprob: f32, decode: Decode<'_>) -> Result<Piece> {
        self.ids.push(id);
        let more = self.unknown(decode)?;
        let begins = self.held.len();
        let text = match more.ends_with('\u{fffd}') {
            true => String::new(),
            false => {
                // the ids before the last piece are not needed any more
                if !more.is_empty() {
                    self.ids.drain(..self.known);
                }
                self.known = self.ids.len();
                more
            }
        };
        self.held.push_str(&text);
        self.tokens.push((begins, TokenText { text, logprob }));
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            let tokens = self.tokens.drain(..).filter(|(begins, _)| *begins < at);
            let tokens = tokens.map(|(_, token)| token).collect();
            let text = self.held.drain(..at).collect();
            self.held.clear();
            self.known = self.ids.len();
            return Ok(Piece { text, tokens, stopped: true });
        }
        let until = self.first_possible_stop();
        let is_out = |(begins, token): &(usize, TokenText)| begins + token.text.len() <= until;
        let count = self.tokens.iter().take_while(|token| is_out(token)).count();
        let tokens = self.tokens.drain(..count).map(|(_, token)| token).collect();
        for (begins, _) in &mut self.tokens {
            *begins = begins.saturating_sub(until);
        }
        Ok(Piece { text: self.held.drain(..until).collect(), tokens, stopped: false })
    }

    /// What is still held back when no token follows. After a stop string there is nothing.
    pub(super) fn finish(&mut self, decode: Decode<'_>) -> Result<Piece> {
        if self.known < self.ids.len() {
            let rest = self.unknown(decode)?;
            self.held.push_str(&rest);
            self.known = self.ids.len();
            if let Some((_, token)) = self.tokens.last_mut() {
                token.text.push_str(&rest);
            }
        }
        let tokens = self.tokens.drain(..).map(|(_, token)| token).collect();
        Ok(Piece { text: std::mem::take(&mut self.held), tokens, stopped: false })
    }

    /// Text of the ids behind the known ones.
    fn unknown(&self, decode: Decode<'_>) -> Result<String> {
        let before = decode(self.ids.get(..self.known).unwrap_or_default())?;
        let all = decode(&self.ids)?;
        Ok(all.strip_prefix(before.as_str()).unwrap_or_default().to_string())
    }

    /// Where the first stop string may begin that is not whole yet.
    fn first_possible_stop(&self) -> usize {
        let begins = |stop: &String| {
            let longest = (stop.len() - 1).min(self.held.len());
            let from = self.held.len() - longest;
            let places = from..self.held.len();
            let mut places = places.filter(|at| self.held.is_char_boundary(*at));
            places.find(|at| stop.starts_with(&self.held[*at..]))
        };
        self.stops.iter().filter_map(begins).min().unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every id is a byte.
    fn bytes(ids: &[i64]) -> Result<String> {
        let bytes: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The pieces of a text that comes byte by byte.
    fn pieces(text: &[u8], stops: &[&str]) -> Vec<Piece> {
        let mut row = RowText::new(stops.iter().map(|stop| stop.to_string()).collect());
        let mut pieces = Vec::new();
        for (i, byte) in text.iter().enumerate() {
            let piece = row.push(i64::from(*byte), i as f32, &bytes).unwrap();
            let stopped = piece.stopped;
            pieces.push(piece);
            if stopped {
                break;
            }
        }
        pieces.push(row.finish(&bytes).unwrap());
        pieces
    }

    fn joined(pieces: &[Piece]) -> String {
        pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    #[test]
    fn characters_come_whole_and_every_token_once() {
        let text = "aé€😀b";
        let all = pieces(text.as_bytes(), &[]);
        let each: Vec<&str> = all.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(each, ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]);
        let tokens: Vec<&TokenText> = all.iter().flat_map(|piece| &piece.tokens).collect();
        let places: Vec<f32> = tokens.iter().map(|token| token.logprob).collect();
        assert_eq!(places, (0..text.len()).map(|i| i as f32).collect::<Vec<_>>());
        let texts: String = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(texts, text);
        // a character that is never whole is told at the end, and the one behind it is not lost
        assert_eq!(joined(&pieces(b"a\xc3", &[])), "a\u{fffd}");
        assert_eq!(joined(&pieces(b"a\xc3b", &[])), "a\u{fffd}b");
    }

    #[test]
    fn a_stop_string_ends_the_text_before_it_and_is_never_told_in_part() {
        for (text, stops, expected) in [
            ("one\n\ntwo", &["\n\n"][..], "one"),
            ("one\ntwo\n\n", &["\n\n"], "one\ntwo"),
            ("aaab", &["aab"], "a"),
            ("abcabd", &["abd"], "abc"),
            ("stop", &["stop"], ""),
            ("x€y", &["€"], "x"),
            ("abcdef", &["def", "cd"], "ab"),
            ("no such thing", &["thingx", "q"], "no such thing"),
            ("ends with a sto", &["stop"], "ends with a sto"),
        ] {
            let all = pieces(text.as_bytes(), stops);
            assert_eq!(joined(&all), expected, "{text:?} {stops:?}");
            let stopped = all.iter().any(|piece| piece.stopped);
            assert_eq!(stopped, text.len() != expected.len(), "{text:?} {stops:?}");
            let tokens: Vec<&TokenText> = all.iter().flat_map(|piece| &piece.tokens).collect();
            let texts: String = tokens.iter().map(|token| token.text.as_str()).collect();
            assert_eq!(texts, expected, "{text:?} {stops:?}");
        }
    }
}
