//! Conversations that are longer than a packed row.
//!
//! In: a sample of any length. Out: token ranges of at most `seq_len`, each of which becomes a
//! document, with the number of tokens at its start that are context without loss; or a reason to
//! drop the conversation. Tokens that are cut off are counted.

use crate::config::policies::OverLong;
use crate::label::supervise::Sample;
use crate::parse::drop_reason::DropReason;

/// The part of a sample that becomes a document: tokens `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DocumentRange {
    /// First token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// Number of tokens at the start that are context and carry no loss.
    pub context: usize,
}

/// Splits a sample into documents of at most `seq_len` tokens. With [`OverLong::Split`] each
/// further document repeats up to `context` tokens of the one before. Fills `ranges` and gives the
/// number of tokens that are in no document.
pub(crate) fn split_into_documents(
    s: &Sample,
    policy: OverLong,
    seq_len: usize,
    bd_size: usize,
    context: usize,
    ranges: &mut Vec<DocumentRange>,
) -> Result<usize, DropReason> {
    ranges.clear();
    let n = s.ids.len();
    let labelled = |from: usize, to: usize| !s.loss_within(from, to).is_empty();
    let mut keep_until = |end: usize| ranges.push(DocumentRange { start: 0, end, context: 0 });
    if n <= seq_len {
        keep_until(n);
        return if labelled(0, n) { Ok(0) } else { Err(DropReason::NoLabel) };
    }
    match policy {
        OverLong::Drop => Err(DropReason::TooLong),
        OverLong::Truncate if labelled(0, seq_len) => {
            keep_until(seq_len);
            Ok(n - seq_len)
        }
        OverLong::Truncate => Err(DropReason::PromptTooLong),
        OverLong::Turns => {
            let end = s.turns.iter().map(|t| t.1).take_while(|&e| e <= seq_len).last();
            match end {
                Some(end) if labelled(0, end) => {
                    keep_until(end);
                    Ok(n - end)
                }
                _ => Err(DropReason::FirstTurnTooLong),
            }
        }
        OverLong::Split => {
            let context = (context / bd_size * bd_size).min(seq_len - bd_size);
            let (mut covered, mut lost) = (0, 0);
            while covered < n {
                let start = if covered == 0 { 0 } else { covered - context };
                let end = (start + seq_len).min(n);
                if labelled(covered, end) {
                    ranges.push(DocumentRange { start, end, context: covered - start });
                } else {
                    // A part of the prompt that fills a row, or the tail behind the last label.
                    lost += end - covered;
                }
                covered = end;
            }
            if ranges.is_empty() { Err(DropReason::NoLabel) } else { Ok(lost) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(turns: &[(usize, usize)]) -> Sample {
        let mut s = Sample::default();
        for &(prompt, response) in turns {
            s.ids.extend(0..prompt as i32);
            let from = s.ids.len();
            s.ids.extend(0..response as i32);
            s.turns.push((from, s.ids.len()));
            s.mark_loss(from);
        }
        s
    }

    fn split(
        s: &Sample,
        policy: OverLong,
        seq_len: usize,
        bd_size: usize,
        context: usize,
    ) -> Result<(Vec<DocumentRange>, usize), DropReason> {
        let mut ranges = Vec::new();
        super::split_into_documents(s, policy, seq_len, bd_size, context, &mut ranges)
            .map(|lost| (ranges, lost))
    }

    #[test]
    fn policies() {
        let s = sample(&[(10, 30), (10, 30)]);
        assert_eq!(
            split(&s, OverLong::Drop, 96, 16, 32),
            Ok((vec![DocumentRange { start: 0, end: 80, context: 0 }], 0))
        );
        assert_eq!(split(&s, OverLong::Drop, 64, 16, 32), Err(DropReason::TooLong));
        assert_eq!(
            split(&s, OverLong::Truncate, 64, 16, 32),
            Ok((vec![DocumentRange { start: 0, end: 64, context: 0 }], 16))
        );
        assert_eq!(
            split(&s, OverLong::Turns, 64, 16, 32),
            Ok((vec![DocumentRange { start: 0, end: 40, context: 0 }], 40))
        );
        assert_eq!(split(&s, OverLong::Turns, 32, 16, 16), Err(DropReason::FirstTurnTooLong));
        assert_eq!(
            split(&sample(&[(90, 10)]), OverLong::Truncate, 64, 16, 32),
            Err(DropReason::PromptTooLong)
        );
        let (ranges, lost) = split(&s, OverLong::Split, 64, 16, 32).unwrap();
        assert_eq!(
            ranges,
            [
                DocumentRange { start: 0, end: 64, context: 0 },
                DocumentRange { start: 32, end: 80, context: 32 }
            ]
        );
        assert_eq!(lost, 0);
    }

    proptest! {
        /// With `split` every label is kept exactly once, and every document fits and starts
        /// on the block grid.
        #[test]
        fn split_keeps_every_label_once(turns in prop::collection::vec((0usize..100, 0usize..100), 1..6), context in 0usize..200) {
            let s = sample(&turns);
            if let Ok((ranges, _)) = split(&s, OverLong::Split, 64, 16, context) {
                let mut seen = vec![0; s.ids.len()];
                for r in &ranges {
                    prop_assert!(r.end - r.start <= 64 && r.start % 16 == 0);
                    (r.start + r.context..r.end).for_each(|i| seen[i] += 1);
                }
                prop_assert!(seen.iter().all(|&n| n <= 1));
                for &(a, b) in &s.loss {
                    prop_assert!(seen[a as usize..b as usize].iter().all(|&n| n == 1));
                }
            } else {
                prop_assert!(s.loss.is_empty());
            }
        }
    }
}
