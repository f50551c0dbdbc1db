//! Ranges of a span that carry no loss.
//!
//! In: the ids of a span and the byte ranges in it that carry no loss. Out: the runs of its tokens
//! that carry loss. The ids stay those of the whole span. A token that is partly inside such a
//! range carries no loss: a token counts as outside if it is also one of the first tokens of the
//! text before the range encoded alone, or one of the last of the text behind it.

use crate::template::rendered::Span;
use std::ops::Range;

/// The ids of the text of a span before a position in it, and those of the text behind it.
pub(crate) type Halves = (Vec<i32>, Vec<i32>);

/// Appends to `runs` the token ranges of `ids`, the ids of `span`, outside of `masked`. `halves`
/// gives the ids of both sides of a position.
pub(crate) fn unmasked_runs<E>(
    span: &Span,
    masked: &[Range<usize>],
    ids: &[i32],
    mut halves: impl FnMut(usize) -> Result<Halves, E>,
    runs: &mut Vec<(usize, usize)>,
) -> Result<(), E> {
    let mut from = 0;
    let inside = masked.iter().filter(|m| m.start < span.end && span.start < m.end);
    for m in inside {
        let start = match m.start <= span.start {
            true => 0,
            false => same(ids.iter(), halves(m.start)?.0.iter()),
        };
        if from < start {
            runs.push((from, start));
        }
        let behind = match m.end >= span.end {
            true => 0,
            false => same(ids.iter().rev(), halves(m.end)?.1.iter().rev()),
        };
        from = from.max(ids.len() - behind).max(start);
    }
    if from < ids.len() {
        runs.push((from, ids.len()));
    }
    Ok(())
}

fn same<'a>(a: impl Iterator<Item = &'a i32>, b: impl Iterator<Item = &'a i32>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters are tokens, and so is ">x".
    fn encode(text: &str) -> Vec<i32> {
        let text = text.replace(">x", "ß");
        text.chars().map(|c| c as i32).collect()
    }

    #[test]
    fn tokens_on_an_edge_carry_no_loss() {
        let (text, span) =
            ("q<a>xyz<b>w.", Span { start: 1, end: 12, loss: true, continues: false });
        let ids = encode(&text[1..]);
        let halves = |at: usize| Ok::<_, ()>((encode(&text[1..at]), encode(&text[at..])));
        for (masked, want) in [
            (vec![], vec!["<aßyz<b>w."]),
            (vec![1..4], vec!["yz<b>w."]),
            (vec![1..5], vec!["yz<b>w."]),
            (vec![4..6], vec!["<a", "z<b>w."]),
            (vec![0..4, 7..10], vec!["yz", "w."]),
            (vec![7..20], vec!["<aßyz"]),
            (vec![1..12], vec![]),
        ] {
            let mut runs = Vec::new();
            unmasked_runs(&span, &masked, &ids, halves, &mut runs).unwrap();
            let words = runs.iter().map(|r| {
                let ids = ids[r.0..r.1].iter();
                ids.map(|i| char::from_u32(*i as u32).unwrap()).collect::<String>()
            });
            assert_eq!(words.collect::<Vec<_>>(), want, "{masked:?}");
        }
    }
}
