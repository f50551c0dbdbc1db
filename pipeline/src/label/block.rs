//! Documents on the block grid.
//!
//! In: the ids of one document, at most S. Out: the same, padded to a multiple of `bd_size`
//! (padding carries no loss), so that no block straddles two conversations. `sample` counts blocks
//! from the document's start; `response` first brings the last turn alone to a multiple, then the
//! document's end to the grid with the pad token.

use dlm_datasets::manifest::Alignment;

/// How to pad.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Block size.
    pub bd_size: usize,
    /// Row length.
    pub seq_len: usize,
    /// Which grid.
    pub alignment: Alignment,
    /// What fills a block.
    pub fill_id: i32,
    /// What brings a document to the grid under `response`.
    pub pad_id: i32,
}

impl Grid {
    /// Pads `ids[from..]` in place; `response` is where the last turn starts, counted from `from`.
    /// Gives the number of tokens that had to be cut off for the padding to fit the row (only under
    /// `response`).
    pub fn pad(&self, ids: &mut Vec<i32>, from: usize, response: usize) -> usize {
        let d = self.bd_size;
        let mut cut = 0;
        let mut n = ids.len() - from;
        if self.alignment == Alignment::Response && response < n {
            let tail = n - response;
            let mut padded = tail.div_ceil(d) * d;
            if response + padded > self.seq_len {
                padded = (self.seq_len - response) / d * d;
            }
            let keep = response + padded.min(tail);
            // A row's last partial block cannot hold a padded response: what does not fit is cut,
            // and counted.
            cut = n - keep.min(n);
            ids.truncate(from + keep);
            ids.resize(from + response + padded, self.fill_id);
            n = response + padded;
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
        fn on_the_grid(n in 1usize..=64, response in 0usize..64, by_response: bool, before in 0usize..20) {
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
