//! Where a text is always split: the added tokens that no other token and no text around them can
//! affect.
//!
//! In: added tokens, and the normalizer and pre-tokenizer of a `tokenizer.json`. Out: ids.

use crate::tokenize::header::AddedToken;
use aho_corasick::AhoCorasick;
use serde_json::Value;
use std::collections::HashSet;

/// Ids of added tokens across whose edges no other added token can match, in ascending order.
pub(crate) fn splitting_tokens(added: &[AddedToken]) -> Vec<i32> {
    let tokens: Vec<&AddedToken> = added.iter().filter(|t| !t.content.is_empty()).collect();
    let Ok(finder) = AhoCorasick::new(tokens.iter().map(|t| t.content.as_str())) else {
        return Vec::new();
    };
    // A token that contains another, is contained in another, or overlaps the start or end of
    // another does not match in every context.
    let mut contained = vec![false; tokens.len()];
    let mut contains = vec![false; tokens.len()];
    for (k, t) in tokens.iter().enumerate() {
        for m in finder.find_overlapping_iter(&t.content).filter(|m| m.len() < t.content.len()) {
            contained[m.pattern().as_usize()] = true;
            contains[k] = true;
        }
    }
    let edges: Vec<Edges> = tokens.iter().map(|t| Edges::of(&t.content)).collect();
    let starts: HashSet<Piece> = edges.iter().flat_map(|e| e.starts.iter().copied()).collect();
    let ends: HashSet<Piece> = edges.iter().flat_map(|e| e.ends.iter().copied()).collect();
    let unambiguous = |k: &usize| {
        !contained[*k]
            && !contains[*k]
            && edges[*k].ends.iter().all(|piece| !starts.contains(piece))
            && edges[*k].starts.iter().all(|piece| !ends.contains(piece))
    };
    let mut ids: Vec<i32> =
        (0..tokens.len()).filter(unambiguous).map(|k| tokens[k].id as i32).collect();
    ids.sort_unstable();
    ids
}

/// Length and hash of the start or end of a token. Pieces that differ and have the same hash (one
/// pair in 2^60) only make a token count as ambiguous.
type Piece = (usize, u64);

/// The proper starts and ends of a token.
struct Edges {
    starts: Vec<Piece>,
    ends: Vec<Piece>,
}

impl Edges {
    fn of(token: &str) -> Edges {
        const PRIME: u128 = (1 << 61) - 1;
        const BASE: u128 = 0x1234_5678_9abc_def1;
        let times = |a: u64, b: u128| (u128::from(a) * b % PRIME) as u64;
        let plus = |a: u64, b: u64| ((u128::from(a) + u128::from(b)) % PRIME) as u64;
        let bytes = token.as_bytes();
        let inside = |at: usize| at > 0 && at < bytes.len() && token.is_char_boundary(at);
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut hash = 0;
        for (at, b) in bytes.iter().enumerate() {
            hash = plus(times(hash, BASE), u64::from(*b) + 1);
            if inside(at + 1) {
                starts.push((at + 1, hash));
            }
        }
        let (mut hash, mut power) = (0, 1u64);
        for (at, b) in bytes.iter().enumerate().rev() {
            hash = plus(hash, times(power, u128::from(*b) + 1));
            power = times(power, BASE);
            if inside(at) {
                ends.push((bytes.len() - at, hash));
            }
        }
        Edges { starts, ends }
    }
}

/// Whether a normalizer or pre-tokenizer treats a piece of text the same at any position and adds
/// nothing at its edges.
pub(crate) fn is_position_independent(v: &Value) -> bool {
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
pub(crate) fn treats_by_position(v: &Value) -> bool {
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
