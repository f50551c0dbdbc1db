//! Checks of the format's invariants: [`check_row`] for one row, [`check_dataset`] for a whole
//! folder.
//!
//! 1. every document starts at a multiple of `bd_size`, its length is a positive multiple of it,
//!    documents follow each other without overlap and the space after the last one holds the pad
//!    id;
//! 2. a label is -100 or equals the id at its place; none lies outside a document, on a document's
//!    first token (nothing precedes it to predict it from) or on the mask token;
//! 3. every document has a label; the mask id occurs only in the run of padding at a document's
//!    end, shorter than a block;
//! 4. ids lie in the vocabulary, sources in the manifest;
//! 5. rows read = kept + dropped, and all totals of the manifest are those of the rows.

use crate::manifest::{Alignment, Counts, Manifest, Padding, Split};
use crate::reader::{Dataset, Document};
use crate::schema::LossRun;
use crate::{Error, IGNORE, hash};

/// Counts over the tokens of a row or document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowSummary {
    /// Number of documents.
    pub documents: u64,
    /// Tokens in documents, not counting block padding.
    pub tokens: u64,
    /// Tokens that carry loss.
    pub response_tokens: u64,
    /// Padding tokens inside documents, up to the block boundary.
    pub block_padding: u64,
    /// Positions after the last document of a row.
    pub row_padding: u64,
    /// Maximal runs of consecutive labels.
    pub label_runs: u64,
    /// Label runs whose last token is not an end-of-turn token.
    pub unfinished_runs: u64,
}

impl RowSummary {
    /// Adds these counts to the totals of a manifest.
    pub fn add_to(&self, c: &mut Counts) {
        c.documents += self.documents;
        c.tokens += self.tokens;
        c.response_tokens += self.response_tokens;
        c.block_padding += self.block_padding;
        c.label_runs += self.label_runs;
        c.unfinished_runs += self.unfinished_runs;
    }
    fn add(&mut self, o: &RowSummary) {
        self.documents += o.documents;
        self.tokens += o.tokens;
        self.response_tokens += o.response_tokens;
        self.block_padding += o.block_padding;
        self.row_padding += o.row_padding;
        self.label_runs += o.label_runs;
        self.unfinished_runs += o.unfinished_runs;
    }
}

/// [`summarize`] for labels given as [`LossRun`]s, in order and not adjacent.
pub fn summarize_runs(ids: &[i32], loss: &[LossRun], m: &Manifest) -> RowSummary {
    let labelled = loss.last().map_or(0, |r| r.1 as usize);
    let padding = padding(ids, |i| i >= labelled, m);
    let ends = |r: &&LossRun| {
        (r.1 as usize)
            .checked_sub(1)
            .and_then(|i| ids.get(i))
            .is_some_and(|id| m.end_of_turn_ids.contains(id))
    };
    RowSummary {
        documents: 1,
        tokens: (ids.len() - padding) as u64,
        response_tokens: loss.iter().map(|r| u64::from(r.1 - r.0)).sum(),
        block_padding: padding as u64,
        label_runs: loss.len() as u64,
        unfinished_runs: (loss.len() - loss.iter().filter(ends).count()) as u64,
        ..Default::default()
    }
}

/// Number of padding tokens at the end of a document. `unlabelled(i)` tells whether token `i`
/// carries no loss.
fn padding(ids: &[i32], unlabelled: impl Fn(usize) -> bool, m: &Manifest) -> usize {
    let pad = match m.padding {
        Padding::Mask => m.mask_token_id,
        Padding::Eos => m.eos_token_id,
    };
    // Padding is the trailing run without labels of the padding id (and, under `response`, of pad
    // ids behind it), shorter than one block (two under `response`).
    let limit = if m.alignment == Alignment::Response { 2 * m.bd_size } else { m.bd_size }
        .saturating_sub(1);
    let mut padding = 0;
    let last = |k: usize, id: i32| {
        ids.len().checked_sub(k + 1).is_some_and(|i| ids[i] == id && unlabelled(i))
    };
    if m.alignment == Alignment::Response {
        while padding < limit && last(padding, m.pad_token_id) {
            padding += 1;
        }
    }
    while padding < limit && last(padding, pad) {
        padding += 1;
    }
    padding
}

/// Counts over one document, given as ids and labels of its whole length; nothing is checked.
pub fn summarize(ids: &[i32], labels: &[i32], m: &Manifest) -> RowSummary {
    let padding = padding(ids, |i| labels[i] == IGNORE, m);
    let mut s = RowSummary { documents: 1, block_padding: padding as u64, ..Default::default() };
    s.tokens = (ids.len() - padding) as u64;
    for i in 0..labels.len() {
        if labels[i] == IGNORE {
            continue;
        }
        s.response_tokens += 1;
        if labels.get(i + 1).is_none_or(|&l| l == IGNORE) {
            s.label_runs += 1;
            s.unfinished_runs += u64::from(!m.end_of_turn_ids.contains(&labels[i]));
        }
    }
    s
}

/// Checks one row against the invariants above and counts its tokens.
///
/// # Errors
/// A message that says which invariant is broken, with the numbers.
pub fn check_row(
    ids: &[i32],
    labels: &[i32],
    documents: &[Document],
    m: &Manifest,
) -> Result<RowSummary, String> {
    let (s, d) = (m.seq_len, m.bd_size);
    if ids.len() != s || labels.len() != s {
        return Err(format!("{} ids and {} labels, expected {s} of each", ids.len(), labels.len()));
    }
    if documents.is_empty() {
        return Err("no document".to_string());
    }
    let mut sum = RowSummary::default();
    let mut end = 0;
    for (k, doc) in documents.iter().enumerate() {
        let (a, n) = (doc.start, doc.length);
        if a % d != 0 || n % d != 0 || n == 0 {
            return Err(format!(
                "document {k} has start {a} and length {n}, both must be multiples of {d} and the length positive"
            ));
        }
        if a != end {
            return Err(format!("document {k} starts at {a}, the one before ends at {end}"));
        }
        end = a.saturating_add(n);
        if end > s {
            return Err(format!("document {k} ends at {end}, past the row's {s}"));
        }
        if doc.source >= m.sources.len() {
            return Err(format!(
                "document {k} names source {}, the manifest has {}",
                doc.source,
                m.sources.len()
            ));
        }
        let one = check_document(&ids[a..end], &labels[a..end], m)
            .map_err(|e| format!("document {k} (at {a}): {e}"))?;
        sum.add(&one);
    }
    for i in end..s {
        if ids[i] != m.pad_token_id || labels[i] != IGNORE {
            return Err(format!(
                "position {i} after the last document holds id {} and label {}, expected pad {}",
                ids[i], labels[i], m.pad_token_id
            ));
        }
    }
    sum.row_padding = (s - end) as u64;
    Ok(sum)
}

fn check_document(ids: &[i32], labels: &[i32], m: &Manifest) -> Result<RowSummary, String> {
    for (i, (&id, &label)) in ids.iter().zip(labels).enumerate() {
        if id < 0 || id as usize >= m.vocab_size {
            return Err(format!("id {id} at {i} is outside the vocabulary of {}", m.vocab_size));
        }
        if label != IGNORE && label != id {
            return Err(format!("label {label} at {i} is neither -100 nor the id {id}"));
        }
        if label == m.mask_token_id {
            return Err(format!("the mask token is supervised at {i}"));
        }
    }
    let sum = summarize(ids, labels, m);
    if sum.response_tokens == 0 {
        return Err("no label".to_string());
    }
    if labels.first().is_some_and(|&l| l != IGNORE) {
        return Err("its first token is supervised, but nothing precedes it".to_string());
    }
    let body = ids.len() - sum.block_padding as usize;
    if let Some(i) = ids[..body].iter().position(|&id| id == m.mask_token_id) {
        return Err(format!("the mask token stands at {i}, outside the padding at the end"));
    }
    Ok(sum)
}

/// The result of [`check_dataset`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of rows in the train split.
    pub train_rows: usize,
    /// Number of rows in the eval split.
    pub eval_rows: usize,
    /// Counts over both splits.
    pub totals: RowSummary,
    /// Bytes of data files whose hash was checked.
    pub bytes: u64,
}

/// Checks a whole dataset: the hash of every file, every row, and the manifest's totals, also for
/// each source.
///
/// # Errors
/// The first [`Error`] found.
pub fn check_dataset(ds: &Dataset) -> Result<Report, Error> {
    let m = ds.manifest();
    let mut report = Report {
        train_rows: ds.rows(Split::Train),
        eval_rows: ds.rows(Split::Eval),
        ..Default::default()
    };
    for f in &m.files {
        let path = ds.dir().join(&f.path);
        let found = hash::sha256_file(&path)?;
        if found != f.sha256 {
            return Err(Error::FileHash { path, found, expected: f.sha256.clone() });
        }
        report.bytes += f.bytes;
    }
    let mut sources = vec![RowSummary::default(); m.sources.len()];
    for split in [Split::Train, Split::Eval] {
        for (i, row) in ds.split(split).iter().enumerate() {
            let row = row?;
            let sum = check_row(row.input_ids, row.labels, &row.documents, m)
                .map_err(|reason| Error::BadRow { split: split.name(), row: i, reason })?;
            report.totals.add(&sum);
            for d in &row.documents {
                let one = summarize(
                    &row.input_ids[d.start..d.start + d.length],
                    &row.labels[d.start..d.start + d.length],
                    m,
                );
                sources[d.source].add(&one);
            }
        }
    }
    check_counts(&m.counts, &report.totals)?;
    let named = m.sources.iter().any(|s| s.counts != Counts::default());
    for (s, found) in m.sources.iter().zip(&sources).filter(|_| named) {
        check_counts(&s.counts, found)?;
    }
    let same = |what, found: u64, expected: u64| {
        if found == expected { Ok(()) } else { Err(Error::Counts { what, found, expected }) }
    };
    same("packing.train_rows", report.train_rows as u64, m.packing.train_rows as u64)?;
    same("packing.eval_rows", report.eval_rows as u64, m.packing.eval_rows as u64)?;
    same("packing.row_padding", report.totals.row_padding, m.packing.row_padding)?;
    if named {
        let mut sum = Counts::default();
        m.sources.iter().for_each(|s| sum.add(&s.counts));
        same("counts.rows_read (sum of sources)", sum.rows_read, m.counts.rows_read)?;
        same("counts.rows_kept (sum of sources)", sum.rows_kept, m.counts.rows_kept)?;
    }
    Ok(report)
}

fn check_counts(c: &Counts, found: &RowSummary) -> Result<(), Error> {
    let same = |what, found: u64, expected: u64| {
        if found == expected { Ok(()) } else { Err(Error::Counts { what, found, expected }) }
    };
    same("rows_read = rows_kept + dropped", c.rows_kept + c.dropped_total(), c.rows_read)?;
    same("documents", found.documents, c.documents)?;
    same("tokens", found.tokens, c.tokens)?;
    same("response_tokens", found.response_tokens, c.response_tokens)?;
    same("block_padding", found.block_padding, c.block_padding)?;
    same("label_runs", found.label_runs, c.label_runs)?;
    same("unfinished_runs", found.unfinished_runs, c.unfinished_runs)
}
