//! What a worker makes of a batch of raw rows.
//!
//! In: what each row gave. Out: [`ProcessedBatch`]: rows, their documents, and the ids and loss of
//! all documents one after another, in memory that is used again for the next batch.

use crate::parse::drop_reason::DropReason;
use dlm_datasets::manifest::Counts;
use dlm_datasets::verify::RowSummary;
use dlm_datasets::writer::LossRun;

/// Where a run stands in its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// Input file.
    pub file: usize,
    /// Rows of it that are done.
    pub row: u64,
}

/// One row, processed.
#[derive(Debug, Default)]
pub struct ProcessedRow {
    /// Why it is left out, if it is.
    pub dropped: Option<DropReason>,
    /// Index into the batch's keys.
    pub key: usize,
    /// How many of the batch's documents are its.
    pub documents: usize,
    /// Tokens cut away.
    pub cut: u64,
    /// Longer than a row.
    pub over_long: bool,
    /// Control-token strings in its text.
    pub marked: bool,
    /// Turns with white space changed.
    pub respaced: u64,
    /// Turns rewritten by the template.
    pub rewritten: u64,
    /// Of what is said; taken only where it is needed.
    pub fingerprint: u128,
}

/// A document of a batch.
#[derive(Debug)]
pub struct ProcessedDocument {
    /// Tokens, padding included.
    pub tokens: usize,
    /// Runs of loss.
    pub runs: usize,
    /// What it holds.
    pub summary: RowSummary,
}

/// A batch, processed.
#[derive(Debug, Default)]
pub struct ProcessedBatch {
    /// Position in the order of batches.
    pub number: u64,
    /// Where its first row stands.
    pub from: Cursor,
    /// Its rows.
    pub rows: Vec<ProcessedRow>,
    /// The documents of all rows, in order.
    pub documents: Vec<ProcessedDocument>,
    /// Their ids, one after another.
    pub ids: Vec<i32>,
    /// Where they carry loss, each counted from its own start.
    pub loss: Vec<LossRun>,
    /// (category, licence) of rows.
    pub keys: Vec<(Option<String>, Option<String>)>,
    /// Bytes of rendered text.
    pub text_bytes: u64,
}

impl ProcessedBatch {
    /// Empties it, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.documents.clear();
        self.ids.clear();
        self.loss.clear();
        self.keys.clear();
        self.text_bytes = 0;
    }

    /// What a row adds to the totals; its documents begin at `at`. `dropped` may know better than
    /// the row.
    pub fn counts(
        &self,
        row: &ProcessedRow,
        at: BatchPosition,
        dropped: Option<DropReason>,
    ) -> Counts {
        let mut c = Counts { rows_read: 1, ..Default::default() };
        if let Some(why) = dropped {
            c.dropped.insert(why.name().to_string(), 1);
            return c;
        }
        c.rows_kept = 1;
        c.tokens_cut = row.cut;
        c.over_long = u64::from(row.over_long);
        for (name, n) in [
            ("special_text_rows", u64::from(row.marked)),
            ("respaced_turns", row.respaced),
            ("rewritten_turns", row.rewritten),
        ] {
            if n > 0 {
                c.notes.insert(name.to_string(), n);
            }
        }
        self.documents_from(at).take(row.documents).for_each(|(d, ..)| d.summary.add_to(&mut c));
        c
    }

    /// The place behind the documents of a row that begin at `at`.
    pub fn after(&self, row: &ProcessedRow, mut at: BatchPosition) -> BatchPosition {
        self.documents[at.documents..].iter().take(row.documents).for_each(|d| at.pass(d));
        at
    }

    /// The documents behind a place, with their ids and loss.
    pub fn documents_from(
        &self,
        mut at: BatchPosition,
    ) -> impl Iterator<Item = (&ProcessedDocument, &[i32], &[LossRun])> {
        self.documents[at.documents..].iter().map(move |d| {
            let found =
                (d, &self.ids[at.ids..at.ids + d.tokens], &self.loss[at.runs..at.runs + d.runs]);
            at.pass(d);
            found
        })
    }
}

/// A place in a batch: how much of it lies before.
#[derive(Debug, Clone, Copy, Default)]
pub struct BatchPosition {
    /// Documents.
    pub documents: usize,
    /// Ids.
    pub ids: usize,
    /// Runs of loss.
    pub runs: usize,
}

impl BatchPosition {
    /// Steps over `d`.
    pub fn pass(&mut self, d: &ProcessedDocument) {
        self.documents += 1;
        self.ids += d.tokens;
        self.runs += d.runs;
    }
}
