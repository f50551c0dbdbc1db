//! What a worker makes of a batch of raw rows.
//!
//! [`ProcessedBatch`] holds the rows, their documents, and the ids and loss runs of all documents
//! one after another, in memory that is reused for later batches.

use crate::parse::drop_reason::DropReason;
use dlm_datasets::manifest::Counts;
use dlm_datasets::verify::RowSummary;
use dlm_datasets::writer::LossRun;

/// Position in the inputs of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Cursor {
    /// Index of the input file.
    pub file: usize,
    /// Number of its rows that precede the position.
    pub row: u64,
}

/// One row after processing.
#[derive(Debug, Default)]
pub(crate) struct ProcessedRow {
    /// Why the row is dropped, if it is.
    pub dropped: Option<DropReason>,
    /// Index in the batch's `keys`; none for a row of another machine's part (`--shard`), which is
    /// neither processed nor counted.
    pub key: Option<usize>,
    /// Number of its documents.
    pub documents: usize,
    /// Number of tokens cut from it.
    pub cut: u64,
    /// Whether it is longer than a packed row.
    pub over_long: bool,
    /// Number of assistant turns that the data itself excludes from the loss.
    pub no_loss_turns: u64,
    /// Number of turns whose thoughts carry no loss (`--mask-thinking`).
    pub masked_turns: u64,
    /// Number of documents that were made of one turn each (`--lost-text split`), and of turns for
    /// which such a document has no place.
    pub turn_documents: (u64, u64),
    /// Whether its text spells control tokens.
    pub has_control_text: bool,
    /// Number of assistant turns whose white space the template changes.
    pub whitespace_changed_turns: u64,
    /// Number of assistant turns that the template rewrites.
    pub rewritten_turns: u64,
    /// Hash of the conversation ([`fingerprint`](crate::parse::conversation::fingerprint)); 0 if
    /// the run does not need it.
    pub fingerprint: u128,
}

/// One document of a batch.
#[derive(Debug)]
pub(crate) struct ProcessedDocument {
    /// Number of its tokens, padding included.
    pub tokens: usize,
    /// Number of its loss runs.
    pub runs: usize,
    pub summary: RowSummary,
}

/// A batch after processing.
#[derive(Debug, Default)]
pub(crate) struct ProcessedBatch {
    /// Number of the batch in its stream, from 0.
    pub number: u64,
    /// Position of its first row.
    pub from: Cursor,
    pub rows: Vec<ProcessedRow>,
    /// The documents of all rows, in order.
    pub documents: Vec<ProcessedDocument>,
    /// Token ids of all documents, in order.
    pub ids: Vec<i32>,
    /// Loss runs of all documents, in order; positions count from the document's start.
    pub loss: Vec<LossRun>,
    /// The distinct (category, licence) of its rows.
    pub keys: Vec<(Option<String>, Option<String>)>,
    /// Bytes of rendered text.
    pub text_bytes: u64,
    /// For each reason, the first row that was dropped for it: its index in `rows`, and what was
    /// found.
    pub examples: Vec<(DropReason, usize, String)>,
}

impl ProcessedBatch {
    /// Removes the content; the memory stays allocated.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.documents.clear();
        self.ids.clear();
        self.loss.clear();
        self.keys.clear();
        self.examples.clear();
        self.text_bytes = 0;
    }

    /// What a row adds to the totals; its documents begin at `at`. `dropped` takes the place of the
    /// row's own field, because duplicates are only known to the caller.
    pub(crate) fn counts(
        &self,
        row: &ProcessedRow,
        at: BatchPosition,
        dropped: Option<DropReason>,
    ) -> Counts {
        let mut c = Counts { rows_read: 1, ..Default::default() };
        if let Some(reason) = dropped {
            c.dropped.insert(reason.name().to_string(), 1);
            return c;
        }
        c.rows_kept = 1;
        c.tokens_cut = row.cut;
        c.over_long = u64::from(row.over_long);
        for (name, n) in [
            ("special_text_rows", u64::from(row.has_control_text)),
            ("no_loss_turns", row.no_loss_turns),
            ("masked_thoughts_turns", row.masked_turns),
            ("split_conversations", u64::from(row.turn_documents.0 > 0)),
            ("split_turns", row.turn_documents.0),
            ("split_turns_too_long", row.turn_documents.1),
            ("respaced_turns", row.whitespace_changed_turns),
            ("rewritten_turns", row.rewritten_turns),
        ] {
            if n > 0 {
                c.notes.insert(name.to_string(), n);
            }
        }
        self.documents_from(at).take(row.documents).for_each(|(d, ..)| d.summary.add_to(&mut c));
        c
    }

    /// The position behind the documents of a row that begin at `at`.
    pub(crate) fn after(&self, row: &ProcessedRow, mut at: BatchPosition) -> BatchPosition {
        self.documents[at.documents..].iter().take(row.documents).for_each(|d| at.pass(d));
        at
    }

    /// The documents from a position on, with their ids and loss runs.
    pub(crate) fn documents_from(
        &self,
        mut at: BatchPosition,
    ) -> impl Iterator<Item = (&ProcessedDocument, &[i32], &[LossRun])> {
        self.documents[at.documents..].iter().map(move |d| {
            let document =
                (d, &self.ids[at.ids..at.ids + d.tokens], &self.loss[at.runs..at.runs + d.runs]);
            at.pass(d);
            document
        })
    }
}

/// Position in the documents of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BatchPosition {
    /// Number of documents before it.
    pub documents: usize,
    /// Number of token ids before it.
    pub ids: usize,
    /// Number of loss runs before it.
    pub runs: usize,
}

impl BatchPosition {
    /// Moves past the document `d`.
    pub(crate) fn pass(&mut self, d: &ProcessedDocument) {
        self.documents += 1;
        self.ids += d.tokens;
        self.runs += d.runs;
    }
}
