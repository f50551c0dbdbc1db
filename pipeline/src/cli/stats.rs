//! Totals of a dataset: what share of the slots is text, padding, loss; how long documents are;
//! what each source gave.

use crate::cli::args::StatsArgs;
use crate::error::{Error, Result};
use dlm_datasets::manifest::{Counts, Manifest};
use dlm_datasets::{Dataset, IGNORE, Split};
use serde_json::json;
use std::fmt::Write;

/// What only the rows can tell.
#[derive(Debug, Default)]
pub struct Lengths {
    /// Documents by blocks.
    pub blocks: Vec<u64>,
    /// Documents by tenth of their positions that carry loss.
    pub loss_tenths: [u64; 10],
    /// Rows by documents in them.
    pub per_row: Vec<u64>,
}

/// Reads all rows.
pub fn lengths(ds: &Dataset) -> Result<Lengths> {
    let m = ds.manifest();
    let mut out = Lengths { blocks: vec![0; m.seq_len / m.bd_size + 1], ..Default::default() };
    for split in [Split::Train, Split::Eval] {
        for row in ds.split(split).iter() {
            let row = row?;
            let n = row.documents.len();
            out.per_row.resize(out.per_row.len().max(n + 1), 0);
            out.per_row[n] += 1;
            for d in &row.documents {
                if let Some(b) = out.blocks.get_mut(d.length / m.bd_size) {
                    *b += 1;
                }
                let loss = row.labels[d.start..d.start + d.length]
                    .iter()
                    .filter(|&&l| l != IGNORE)
                    .count();
                out.loss_tenths[(loss * 10 / d.length.max(1)).min(9)] += 1;
            }
        }
    }
    Ok(out)
}

/// Slots in all rows.
pub fn slots(m: &Manifest) -> u64 {
    ((m.packing.train_rows + m.packing.eval_rows) * m.seq_len) as u64
}

/// Share of slots inside documents, block padding included.
pub fn fill(m: &Manifest) -> f64 {
    let s = slots(m);
    if s == 0 { 0.0 } else { (s - m.packing.row_padding.min(s)) as f64 / s as f64 }
}

/// Shows the totals of `a.dir`.
pub fn run(a: &StatsArgs) -> Result<()> {
    let ds = Dataset::open(&a.dir)?;
    let m = ds.manifest();
    let l = lengths(&ds)?;
    if let Some(path) = &a.html {
        let page = crate::cli::stats_html::page(m, &l);
        dlm_datasets::fs::write_atomic(path, page.as_bytes())?;
    }
    if a.json {
        let c = &m.counts;
        let v = json!({"train_rows": m.packing.train_rows, "eval_rows": m.packing.eval_rows, "seq_len": m.seq_len, "bd_size": m.bd_size, "slots": slots(m), "fill": fill(m),
            "counts": c, "row_padding": m.packing.row_padding, "sources": m.sources, "documents_by_blocks": l.blocks, "documents_by_loss_tenth": l.loss_tenths,
            "rows_by_documents": l.per_row, "mask_token_id": m.mask_token_id, "fingerprint": ds.fingerprint(), "zero_copy": ds.is_zero_copy()});
        println!("{}", serde_json::to_string(&v).map_err(|e| Error::Internal(e.to_string()))?);
    } else {
        print!("{}", summary(m));
        print!("{}", histogram(m, &l));
    }
    Ok(())
}

fn percent(n: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { 100.0 * n as f64 / of as f64 }
}

/// The totals, for people.
pub fn summary(m: &Manifest) -> String {
    let (c, s) = (&m.counts, slots(m));
    let mut o = String::new();
    let _ = writeln!(
        o,
        "conversations  {} read = {} kept + {} dropped",
        c.rows_read,
        c.rows_kept,
        c.dropped_total()
    );
    for (why, n) in &c.dropped {
        let _ = writeln!(o, "               {n:>10} {why}");
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
    for (what, n) in &c.notes {
        let _ = writeln!(o, "               {n:>10} {what}");
    }
    if m.sources.len() > 1 {
        let _ = writeln!(
            o,
            "{:<44} {:>9} {:>9} {:>12} {:>7} {:>7}",
            "source", "read", "kept", "tokens", "share", "loss"
        );
        for s in m.sources.iter().take(40) {
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
        if m.sources.len() > 40 {
            let _ = writeln!(o, "… and {} more (--json has all)", m.sources.len() - 40);
        }
    }
    o
}

fn histogram(m: &Manifest, l: &Lengths) -> String {
    let top = l.blocks.iter().copied().max().unwrap_or(0).max(1);
    let mut o = String::from("document length (with block padding)\n");
    for (b, &n) in l.blocks.iter().enumerate().filter(|(b, _)| *b > 0) {
        let _ = writeln!(o, "{:>8} {n:>9} {}", b * m.bd_size, "█".repeat((n * 50 / top) as usize));
    }
    o
}
