//! Whole documents into rows of S.
//!
//! In: documents in order, each a multiple of `bd_size` long. Out: rows, deterministically. Best fit over a bounded number of
//! open rows: a document goes into the open row it leaves least space in; when too many are open, the fullest is closed.
//! Lengths are multiples of the block size, so there are only S / bd_size classes of space left, and finding a row is quick.

use dlm_datasets::IGNORE;
use dlm_datasets::reader::Document;
use std::collections::VecDeque;

/// A row being filled.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OpenRow {
    age: u64,
    /// Ids so far.
    pub ids: Vec<i32>,
    /// Labels so far.
    pub labels: Vec<i32>,
    /// Documents so far: start, length, source.
    pub documents: Vec<(usize, usize, usize)>,
}

impl OpenRow {
    /// Its documents.
    pub fn documents(&self) -> impl Iterator<Item = Document> + '_ {
        self.documents.iter().map(|&(start, length, source)| Document { start, length, source })
    }
}

/// Best-fit packing.
pub struct Packer {
    seq_len: usize,
    bd_size: usize,
    pad_id: i32,
    max_open: usize,
    /// Open rows by free blocks, oldest first.
    open: Vec<VecDeque<OpenRow>>,
    count: usize,
    age: u64,
    spare: Vec<OpenRow>,
}

impl Packer {
    /// An empty packer.
    pub fn new(seq_len: usize, bd_size: usize, pad_id: i32, max_open: usize) -> Self {
        Packer { seq_len, bd_size, pad_id, max_open: max_open.max(1), open: vec![VecDeque::new(); seq_len / bd_size], count: 0, age: 0, spare: Vec::new() }
    }

    /// Adds a document; `done` receives the row this completes, if any.
    pub fn push<E>(&mut self, ids: &[i32], labels: &[i32], source: usize, mut done: impl FnMut(&OpenRow) -> Result<(), E>) -> Result<(), E> {
        let need = ids.len() / self.bd_size;
        let class = (need..self.open.len()).find(|&c| !self.open[c].is_empty());
        let mut row = match class.and_then(|c| self.open[c].pop_front()) {
            Some(row) => {
                self.count -= 1;
                row
            }
            None => {
                let mut row = self.spare.pop().unwrap_or_default();
                row.ids.clear();
                row.labels.clear();
                row.documents.clear();
                row.ids.reserve(self.seq_len);
                row.labels.reserve(self.seq_len);
                row.age = self.age;
                self.age += 1;
                row
            }
        };
        row.documents.push((row.ids.len(), ids.len(), source));
        row.ids.extend_from_slice(ids);
        row.labels.extend_from_slice(labels);
        let free = (self.seq_len - row.ids.len()) / self.bd_size;
        if free == 0 {
            return self.close(row, &mut done);
        }
        // Rows of one class stay in order of age, so that a restored packer goes on exactly as this one.
        let class = &mut self.open[free];
        let at = class.partition_point(|r| r.age < row.age);
        class.insert(at, row);
        self.count += 1;
        if self.count > self.max_open
            && let Some(row) = self.open.iter_mut().find_map(VecDeque::pop_front)
        {
            self.count -= 1;
            return self.close(row, &mut done);
        }
        Ok(())
    }

    fn close<E>(&mut self, mut row: OpenRow, done: &mut impl FnMut(&OpenRow) -> Result<(), E>) -> Result<(), E> {
        row.ids.resize(self.seq_len, self.pad_id);
        row.labels.resize(self.seq_len, IGNORE);
        done(&row)?;
        self.spare.push(row);
        Ok(())
    }

    /// Closes every open row, oldest first.
    pub fn finish<E>(&mut self, mut done: impl FnMut(&OpenRow) -> Result<(), E>) -> Result<(), E> {
        let mut rows: Vec<OpenRow> = self.open.iter_mut().flat_map(|c| c.drain(..)).collect();
        rows.sort_by_key(|r| r.age);
        self.count = 0;
        rows.into_iter().try_for_each(|r| self.close(r, &mut done))
    }

    /// The open rows and the age of the next: all there is to remember.
    pub fn snapshot(&self) -> (u64, Vec<OpenRow>) {
        let mut rows: Vec<OpenRow> = self.open.iter().flatten().cloned().collect();
        rows.sort_by_key(|r| r.age);
        (self.age, rows)
    }

    /// Goes on from a [`snapshot`](Self::snapshot). False if it does not fit this packer.
    pub fn restore(&mut self, age: u64, rows: Vec<OpenRow>) -> bool {
        self.open.iter_mut().for_each(VecDeque::clear);
        self.count = rows.len();
        self.age = age;
        for row in rows {
            let n = row.ids.len();
            if n >= self.seq_len || n % self.bd_size != 0 || row.labels.len() != n {
                return false;
            }
            self.open[(self.seq_len - n) / self.bd_size].push_back(row);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    type Rows = Vec<(Vec<i32>, Vec<Document>)>;

    fn pack(lengths: &[usize], open: usize, stop: Option<usize>) -> Rows {
        let mut out: Rows = Vec::new();
        let mut p = Packer::new(64, 16, -1, open);
        let mut done = |r: &OpenRow| -> Result<(), Infallible> {
            out.push((r.ids.clone(), r.documents().collect()));
            Ok(())
        };
        for (i, &n) in lengths.iter().enumerate() {
            if Some(i) == stop {
                let (age, rows) = p.snapshot();
                p = Packer::new(64, 16, -1, open);
                assert!(p.restore(age, rows));
            }
            let ids = vec![i as i32; n * 16];
            p.push(&ids, &ids, i, &mut done).unwrap();
        }
        p.finish(&mut done).unwrap();
        out
    }

    proptest! {
        #[test]
        fn every_document_once_whole_and_in_place(lengths in prop::collection::vec(1usize..=4, 0..200), open in 1usize..20, stop in 0usize..200) {
            let rows = pack(&lengths, open, None);
            let mut seen = vec![0; lengths.len()];
            for (ids, documents) in &rows {
                prop_assert_eq!(ids.len(), 64);
                let mut at = 0;
                for d in documents {
                    prop_assert_eq!(d.start, at);
                    prop_assert_eq!(d.length, lengths[d.source] * 16);
                    prop_assert!(ids[at..at + d.length].iter().all(|&i| i == d.source as i32));
                    at += d.length;
                    seen[d.source] += 1;
                }
                prop_assert!(ids[at..].iter().all(|&i| i == -1));
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
            prop_assert_eq!(rows, pack(&lengths, open, Some(stop)), "a restored packer goes on as if nothing had happened");
        }
    }

    #[test]
    fn fills_well() {
        // Lengths 1..4 of 4 blocks, drawn evenly: the fullest possible is 1.0.
        let lengths: Vec<usize> = (0..10_000u64).map(|i| 1 + (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62) as usize).collect();
        let rows = pack(&lengths, 64, None);
        let fill = lengths.iter().sum::<usize>() as f64 / (rows.len() * 4) as f64;
        assert!(fill > 0.98, "{fill}");
    }
}
