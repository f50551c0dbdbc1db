//! Conversations longer than a row.
//!
//! In: ids and labels of any length. Out: token ranges of at most S, each a document, with how much
//! of its start is context that carries no loss; or a reason to leave the conversation out. What is
//! cut away is counted.

use crate::config::policies::OverLong;
use crate::label::supervise::Sample;
use crate::parse::drop_reason::DropReason;

/// A document to be: `start..end` of the sample, of which the first `context` tokens carry no loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// First token.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Tokens at the start that only give context.
    pub context: usize,
}

/// Cuts a sample to rows of `seq_len`; `context` tokens are repeated under `split`. Fills `cuts`
/// and gives the number of tokens lost.
pub fn cut(
    s: &Sample,
    policy: OverLong,
    seq_len: usize,
    bd_size: usize,
    context: usize,
    cuts: &mut Vec<Cut>,
) -> Result<usize, DropReason> {
    cuts.clear();
    let n = s.ids.len();
    let labelled = |from: usize, to: usize| !s.loss_within(from, to).is_empty();
    let mut whole = |end: usize| cuts.push(Cut { start: 0, end, context: 0 });
    if n <= seq_len {
        whole(n);
        return if labelled(0, n) { Ok(0) } else { Err(DropReason::NoLabel) };
    }
    match policy {
        OverLong::Drop => Err(DropReason::TooLong),
        OverLong::Truncate if labelled(0, seq_len) => {
            whole(seq_len);
            Ok(n - seq_len)
        }
        OverLong::Truncate => Err(DropReason::PromptTooLong),
        OverLong::Turns => {
            let end = s.turns.iter().map(|t| t.1).take_while(|&e| e <= seq_len).last();
            match end {
                Some(end) if labelled(0, end) => {
                    whole(end);
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
                    cuts.push(Cut { start, end, context: covered - start });
                } else {
                    lost += end - covered; // a stretch of prompt that fills a row, or the tail behind the last label
                }
                covered = end;
            }
            if cuts.is_empty() { Err(DropReason::NoLabel) } else { Ok(lost) }
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
            s.take_loss(from);
        }
        s
    }

    fn cut(
        s: &Sample,
        policy: OverLong,
        seq_len: usize,
        bd_size: usize,
        context: usize,
    ) -> Result<(Vec<Cut>, usize), DropReason> {
        let mut cuts = Vec::new();
        super::cut(s, policy, seq_len, bd_size, context, &mut cuts).map(|lost| (cuts, lost))
    }

    #[test]
    fn policies() {
        let s = sample(&[(10, 30), (10, 30)]);
        assert_eq!(
            cut(&s, OverLong::Drop, 96, 16, 32),
            Ok((vec![Cut { start: 0, end: 80, context: 0 }], 0))
        );
        assert_eq!(cut(&s, OverLong::Drop, 64, 16, 32), Err(DropReason::TooLong));
        assert_eq!(
            cut(&s, OverLong::Truncate, 64, 16, 32),
            Ok((vec![Cut { start: 0, end: 64, context: 0 }], 16))
        );
        assert_eq!(
            cut(&s, OverLong::Turns, 64, 16, 32),
            Ok((vec![Cut { start: 0, end: 40, context: 0 }], 40))
        );
        assert_eq!(cut(&s, OverLong::Turns, 32, 16, 16), Err(DropReason::FirstTurnTooLong));
        assert_eq!(
            cut(&sample(&[(90, 10)]), OverLong::Truncate, 64, 16, 32),
            Err(DropReason::PromptTooLong)
        );
        let (cuts, lost) = cut(&s, OverLong::Split, 64, 16, 32).unwrap();
        assert_eq!(
            cuts,
            [Cut { start: 0, end: 64, context: 0 }, Cut { start: 32, end: 80, context: 32 }]
        );
        assert_eq!(lost, 0);
    }

    proptest! {
        /// Under `split` every label is kept exactly once, and every cut fits and stays on the
        /// block grid.
        #[test]
        fn split_keeps_every_label_once(turns in prop::collection::vec((0usize..100, 0usize..100), 1..6), context in 0usize..200) {
            let s = sample(&turns);
            if let Ok((cuts, _)) = cut(&s, OverLong::Split, 64, 16, context) {
                let mut seen = vec![0; s.ids.len()];
                for c in &cuts {
                    prop_assert!(c.end - c.start <= 64 && c.start % 16 == 0);
                    (c.start + c.context..c.end).for_each(|i| seen[i] += 1);
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
