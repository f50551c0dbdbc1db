//! Packs whole documents into rows of `seq_len` tokens.
//!
//! In: documents in order, whose lengths are multiples of `bd_size`. Out: rows, deterministically.
//! A window of documents is kept. When it is full, a row is made of the largest document in it and
//! those others that fill the rest of the row exactly, tried from the largest down; if no
//! combination does, of those that leave the fewest slots free. There are only `seq_len / bd_size`
//! lengths, so the search is short. On real lengths a window of 1,024 fills rows better than
//! best-fit-decreasing over all documents, which uses up the small ones too early (docs/log.md).

use dlm_datasets::writer::{DocumentTokens, LossRun};
use std::collections::VecDeque;

/// Largest number of steps of a search for an exact fill.
const SEARCH: usize = 4000;

/// A document that waits for its row.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PendingDocument {
    /// Its number in the order of arrival.
    number: u64,
    ids: Vec<i32>,
    loss: Vec<LossRun>,
    source: usize,
}

impl PendingDocument {
    /// The document in the form that the writer takes.
    pub fn tokens(&self) -> DocumentTokens<'_> {
        DocumentTokens { input_ids: &self.ids, loss: &self.loss, source: self.source }
    }
}

/// Packs documents by exact fit over a window.
pub struct Packer {
    seq_len: usize,
    bd_size: usize,
    window: usize,
    /// Waiting documents by their length in blocks, oldest first; index 0 is unused.
    waiting: Vec<VecDeque<PendingDocument>>,
    /// Number of waiting documents.
    count: usize,
    /// Number of the next document.
    number: u64,
    /// Packed documents, whose memory is reused.
    spare: Vec<PendingDocument>,
    row: Vec<PendingDocument>,
}

impl Packer {
    /// `window` is the number of documents to choose from, at least 1.
    pub fn new(seq_len: usize, bd_size: usize, window: usize) -> Self {
        let waiting = vec![VecDeque::new(); seq_len / bd_size + 1];
        Packer {
            seq_len,
            bd_size,
            window: window.max(1),
            waiting,
            count: 0,
            number: 0,
            spare: Vec::new(),
            row: Vec::new(),
        }
    }

    /// Adds a document. If the window is full, a row is made, and `done` gets its documents.
    pub fn push<E>(
        &mut self,
        document: DocumentTokens,
        mut done: impl FnMut(&[PendingDocument]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut w = self.spare.pop().unwrap_or_default();
        w.ids.clear();
        w.ids.extend_from_slice(document.input_ids);
        w.loss.clear();
        w.loss.extend_from_slice(document.loss);
        (w.source, w.number) = (document.source, self.number);
        self.number += 1;
        self.waiting[w.ids.len() / self.bd_size].push_back(w);
        self.count += 1;
        if self.count > self.window { self.emit(&mut done) } else { Ok(()) }
    }

    /// Makes one row.
    fn emit<E>(
        &mut self,
        done: &mut impl FnMut(&[PendingDocument]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(largest) = self.waiting.iter().rposition(|c| !c.is_empty()) else {
            return Ok(());
        };
        let mut free: Vec<usize> = self.waiting.iter().map(VecDeque::len).collect();
        free[largest] -= 1;
        let mut search =
            Search { free, steps: SEARCH, used: Vec::new(), best: Vec::new(), left: usize::MAX };
        let rest = self.waiting.len() - 1 - largest;
        search.run(rest, rest);
        for class in std::iter::once(largest).chain(search.best) {
            self.row.extend(self.waiting[class].pop_front());
        }
        self.count -= self.row.len();
        let made = done(&self.row);
        self.spare.append(&mut self.row);
        made
    }

    /// Makes rows of all waiting documents.
    pub fn finish<E>(
        &mut self,
        mut done: impl FnMut(&[PendingDocument]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.count > 0 {
            self.emit(&mut done)?;
        }
        Ok(())
    }

    /// The number of the next document, and the waiting documents in order of arrival.
    pub fn snapshot(&self) -> (u64, Vec<PendingDocument>) {
        let mut all: Vec<PendingDocument> = self.waiting.iter().flatten().cloned().collect();
        all.sort_by_key(|w| w.number);
        (self.number, all)
    }

    /// Continues from a [`snapshot`](Self::snapshot). False if it does not fit this packer.
    pub fn restore(&mut self, number: u64, all: Vec<PendingDocument>) -> bool {
        self.waiting.iter_mut().for_each(VecDeque::clear);
        self.count = all.len();
        self.number = number;
        for w in all {
            let n = w.ids.len();
            let inside = w.loss.iter().all(|r| r.0 <= r.1 && r.1 as usize <= n);
            if n == 0 || n > self.seq_len || n % self.bd_size != 0 || !inside {
                return false;
            }
            self.waiting[n / self.bd_size].push_back(w);
        }
        true
    }
}

/// Depth-first search for lengths that fill a row, larger lengths first. Lengths are in blocks.
struct Search {
    /// Number of documents left by length.
    free: Vec<usize>,
    /// Steps left.
    steps: usize,
    /// Lengths of the combination that is tried.
    used: Vec<usize>,
    /// Lengths of the best combination so far.
    best: Vec<usize>,
    /// Blocks that it leaves free.
    left: usize,
}

impl Search {
    /// Fills `rest` blocks with lengths up to `top`; true if they are filled exactly or the steps
    /// are used up.
    fn run(&mut self, top: usize, rest: usize) -> bool {
        if rest < self.left {
            self.left = rest;
            self.best.clone_from(&self.used);
        }
        if rest == 0 || self.steps == 0 {
            return true;
        }
        for size in (1..=top.min(rest)).rev() {
            if self.free[size] == 0 {
                continue;
            }
            self.steps = self.steps.saturating_sub(1);
            self.free[size] -= 1;
            self.used.push(size);
            let end = self.run(size, rest - size);
            self.used.pop();
            self.free[size] += 1;
            if end {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// (number, length) of every document of every row.
    type Rows = Vec<Vec<(usize, usize)>>;

    fn document(ids: &[i32], source: usize) -> DocumentTokens<'_> {
        DocumentTokens { input_ids: ids, loss: &[(1, 2)], source }
    }

    fn pack(lengths: &[usize], window: usize, stop: Option<usize>) -> Rows {
        let mut out: Rows = Vec::new();
        let mut p = Packer::new(64, 16, window);
        let mut done = |r: &[PendingDocument]| -> Result<(), Infallible> {
            assert!(
                r.iter().all(|w| w.loss == [(1, 2)] && w.ids.iter().all(|&i| i == w.source as i32))
            );
            out.push(r.iter().map(|w| (w.source, w.ids.len())).collect());
            Ok(())
        };
        for (i, &n) in lengths.iter().enumerate() {
            if Some(i) == stop {
                let (age, rows) = p.snapshot();
                p = Packer::new(64, 16, window);
                assert!(p.restore(age, rows));
            }
            let ids = vec![i as i32; n * 16];
            p.push(document(&ids, i), &mut done).unwrap();
        }
        p.finish(&mut done).unwrap();
        out
    }

    proptest! {
        #[test]
        fn every_document_once_whole_and_in_place(lengths in prop::collection::vec(1usize..=4, 0..200), window in 1usize..20, stop in 0usize..200) {
            let rows = pack(&lengths, window, None);
            let mut seen = vec![0; lengths.len()];
            for row in &rows {
                prop_assert!(row.iter().map(|d| d.1).sum::<usize>() <= 64);
                for &(number, length) in row {
                    prop_assert_eq!(length, lengths[number] * 16);
                    seen[number] += 1;
                }
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
            prop_assert_eq!(rows, pack(&lengths, window, Some(stop)), "a restored packer continues as if nothing had happened");
        }
    }

    #[test]
    fn fills_well() {
        // Lengths of 1 to 4 blocks, equally often, in rows of 4: a fill of 1.0 is possible.
        let lengths: Vec<usize> = (0..10_000u64)
            .map(|i| 1 + (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62) as usize)
            .collect();
        let rows = pack(&lengths, 64, None);
        let fill = lengths.iter().sum::<usize>() as f64 / (rows.len() * 4) as f64;
        assert!(fill > 0.99, "{fill}");
    }

    #[test]
    fn long_rows_do_not_stall() {
        // With 1,024 blocks per row the search ends after its steps and takes the best combination.
        let mut p = Packer::new(16 * 1024, 16, 512);
        let mut rows = 0;
        for i in 0..5000usize {
            let ids = vec![1; 16 * (1 + i * 7919 % 500 * 2)];
            p.push(document(&ids, 0), |_| -> Result<(), Infallible> {
                rows += 1;
                Ok(())
            })
            .unwrap();
        }
        assert!(rows > 100);
    }
}
