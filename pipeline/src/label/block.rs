//! Padding of documents to the block grid.
//!
//! In: the token ids of one document, at most `seq_len`. Out: the same ids padded to a multiple of
//! `bd_size`, so that no block straddles two documents; padding carries no loss. With alignment
//! `sample`, blocks are counted from the start of the document, as in decoding. With `response`,
//! the last turn alone is padded to a multiple of `bd_size` first, and then the document is padded
//! to the grid with the pad token.

use dlm_datasets::manifest::Alignment;

/// The block grid and the tokens that fill it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Block size in tokens.
    pub bd_size: usize,
    /// Row length in tokens, a multiple of `bd_size`.
    pub seq_len: usize,
    /// What the grid is aligned with.
    pub alignment: Alignment,
    /// Token id that pads the end of a document, and with `response` alignment the end of the last
    /// turn.
    pub fill_id: i32,
    /// Token id that pads the end of a document with `response` alignment.
    pub pad_id: i32,
}

impl Grid {
    /// Pads `ids[from..]` in place. The last turn starts at index `from + turn_start`. Gives the
    /// number of tokens that were cut off so that the padding fits into the row, which happens only
    /// with `response` alignment.
    pub(crate) fn pad(&self, ids: &mut Vec<i32>, from: usize, turn_start: usize) -> usize {
        let d = self.bd_size;
        let mut cut = 0;
        let mut n = ids.len() - from;
        if self.alignment == Alignment::Response && turn_start < n {
            let tail = n - turn_start;
            let mut padded = tail.div_ceil(d) * d;
            if turn_start + padded > self.seq_len {
                padded = (self.seq_len - turn_start) / d * d;
            }
            let keep = turn_start + padded.min(tail);
            // The last partial block of a row cannot hold a padded response. Tokens that do not fit
            // are cut off and counted.
            cut = n - keep.min(n);
            ids.truncate(from + keep);
            ids.resize(from + turn_start + padded, self.fill_id);
            n = turn_start + padded;
        }
        let fill = if self.alignment == Alignment::Response { self.pad_id } else { self.fill_id };
        let whole = n.div_ceil(d) * d;
        ids.resize(from + whole, fill);
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn padded_documents_are_on_the_grid(n in 1usize..=64, response in 0usize..64, by_response: bool, before in 0usize..20) {
            let alignment = if by_response { Alignment::Response } else { Alignment::Sample };
            let grid = Grid { bd_size: 16, seq_len: 64, alignment, fill_id: 99, pad_id: 98 };
            let mut ids: Vec<i32> = vec![7; before];
            ids.extend(0..n as i32);
            let cut = grid.pad(&mut ids, before, response);
            let whole = ids.len() - before;
            prop_assert!(whole % 16 == 0 && whole <= 64 && cut <= n);
            prop_assert!(by_response || cut == 0);
            let kept = n - cut;
            prop_assert!(ids[before..before + kept].iter().copied().eq(0..kept as i32));
            prop_assert!(ids[before + kept..].iter().all(|&i| i >= 98));
            if by_response && response < n {
                let fill = ids.iter().filter(|&&i| i == 99).count();
                prop_assert_eq!((kept - response + fill) % 16, 0);
            }
        }
    }
}
