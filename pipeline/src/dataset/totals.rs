//! Totals of a dataset: shares of tokens, padding and loss, lengths of documents, counts by source.

use crate::error::Result;
use dlm_datasets::manifest::{Counts, Manifest};
use dlm_datasets::{Dataset, IGNORE, Split};
use std::fmt::Write;

/// Largest number of sources in the text for people.
const SHOWN_SOURCES: usize = 40;

/// Distributions over documents and rows, which the manifest does not hold.
#[derive(Debug, Default)]
pub(crate) struct Distributions {
    /// Number of documents by their length in blocks; index 0 is unused.
    pub documents_by_blocks: Vec<u64>,
    /// Number of documents by the share of their positions that carry loss, in tenths.
    pub documents_by_loss_tenth: [u64; 10],
    /// Number of rows by the number of documents in them.
    pub rows_by_documents: Vec<u64>,
    /// Number of rows by the share of their positions inside documents, in hundredths, rounded
    /// down; the last entry counts full rows.
    pub rows_by_fill: Vec<u64>,
}

/// Reads all rows of a dataset.
pub(crate) fn distributions(ds: &Dataset) -> Result<Distributions> {
    let m = ds.manifest();
    let mut out = Distributions {
        documents_by_blocks: vec![0; m.seq_len / m.bd_size + 1],
        rows_by_fill: vec![0; 101],
        ..Default::default()
    };
    for split in [Split::Train, Split::Eval] {
        for row in ds.split(split).iter() {
            let row = row?;
            let n = row.documents.len();
            out.rows_by_documents.resize(out.rows_by_documents.len().max(n + 1), 0);
            out.rows_by_documents[n] += 1;
            let filled: usize = row.documents.iter().map(|d| d.length).sum();
            out.rows_by_fill[(filled * 100 / m.seq_len).min(100)] += 1;
            for d in &row.documents {
                if let Some(b) = out.documents_by_blocks.get_mut(d.length / m.bd_size) {
                    *b += 1;
                }
                let loss = row.labels[d.start..d.start + d.length]
                    .iter()
                    .filter(|&&l| l != IGNORE)
                    .count();
                out.documents_by_loss_tenth[(loss * 10 / d.length.max(1)).min(9)] += 1;
            }
        }
    }
    Ok(out)
}

/// Number of token slots in all rows.
pub(crate) fn slots(m: &Manifest) -> u64 {
    ((m.packing.train_rows + m.packing.eval_rows) * m.seq_len) as u64
}

/// Share of slots inside documents, block padding included, from 0 to 1.
pub(crate) fn fill(m: &Manifest) -> f64 {
    let s = slots(m);
    if s == 0 { 0.0 } else { (s - m.packing.row_padding.min(s)) as f64 / s as f64 }
}

fn percent(n: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { 100.0 * n as f64 / of as f64 }
}

/// The totals as text for people.
pub(crate) fn summary(m: &Manifest) -> String {
    let (c, s) = (&m.counts, slots(m));
    let mut o = String::new();
    let _ = writeln!(
        o,
        "conversations  {} read = {} kept + {} dropped",
        c.rows_read,
        c.rows_kept,
        c.dropped_total()
    );
    for (reason, n) in &c.dropped {
        let _ = write!(o, "               {n:>10} {reason}");
        if let Some(e) = m.drop_examples.get(reason) {
            let colon = if e.message.is_empty() { "" } else { ": " };
            let _ = write!(o, ", first in {} row {}{colon}{}", e.file, e.row, e.message);
        }
        o.push('\n');
    }
    let _ = writeln!(
        o,
        "rows           {} train, {} eval, of {} tokens",
        m.packing.train_rows, m.packing.eval_rows, m.seq_len
    );
    let _ = writeln!(
        o,
        "documents      {} ({:.2} a row)",
        c.documents,
        c.documents as f64 / ((s / m.seq_len.max(1) as u64).max(1)) as f64
    );
    let _ = writeln!(
        o,
        "slots          {s}: {:.2} % filled ({:.2} % tokens, {:.2} % block padding)",
        100.0 * fill(m),
        percent(c.tokens, s),
        percent(c.block_padding, s)
    );
    let _ = writeln!(
        o,
        "tokens         {}, {:.1} % with loss",
        c.tokens,
        percent(c.response_tokens, c.tokens)
    );
    let _ = writeln!(
        o,
        "too long       {} conversations, {} tokens cut ({:.1} %)",
        c.over_long,
        c.tokens_cut,
        percent(c.tokens_cut, c.tokens + c.tokens_cut)
    );
    let _ = writeln!(
        o,
        "turns          {} supervised, {} without an end-of-turn token",
        c.label_runs, c.unfinished_runs
    );
    for (note, n) in &c.notes {
        let _ = writeln!(o, "               {n:>10} {note}");
    }
    if m.sources.len() > 1 {
        let _ = writeln!(
            o,
            "{:<44} {:>9} {:>9} {:>12} {:>7} {:>7}",
            "source", "read", "kept", "tokens", "share", "loss"
        );
        for s in m.sources.iter().take(SHOWN_SOURCES) {
            let name =
                s.category.as_ref().map_or_else(|| s.name.clone(), |k| format!("{} [{k}]", s.name));
            let Counts { rows_read, rows_kept, tokens, response_tokens, .. } = s.counts;
            let _ = writeln!(
                o,
                "{name:<44} {rows_read:>9} {rows_kept:>9} {tokens:>12} {:>6.1}% {:>6.1}%",
                percent(tokens, c.tokens),
                percent(response_tokens, tokens)
            );
        }
        if m.sources.len() > SHOWN_SOURCES {
            let _ = writeln!(o, "… and {} more (--json has all)", m.sources.len() - SHOWN_SOURCES);
        }
    }
    o
}

/// The lengths of documents as a bar chart of text.
pub(crate) fn histogram(m: &Manifest, d: &Distributions) -> String {
    let top = d.documents_by_blocks.iter().copied().max().unwrap_or(0).max(1);
    let mut o = String::from("document length (with block padding)\n");
    for (b, &n) in d.documents_by_blocks.iter().enumerate().filter(|(b, _)| *b > 0) {
        let _ = writeln!(o, "{:>8} {n:>9} {}", b * m.bd_size, "█".repeat((n * 50 / top) as usize));
    }
    o
}
