//! The totals of a dataset as one HTML page with charts, without external files.

use crate::dataset::totals::{Distributions, fill, slots};
use dlm_datasets::chart::bars;
use dlm_datasets::html::escape;
use dlm_datasets::manifest::Manifest;
use std::fmt::Write;

/// The page as HTML text.
pub(crate) fn page(m: &Manifest, d: &Distributions) -> String {
    let c = &m.counts;
    let mut o = String::from(
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Packed dataset</title><style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
         table{border-collapse:collapse;width:100%}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
         svg{width:100%}rect{fill:#3b6ea5}text{font-size:11px;fill:#555}figure{margin:2rem 0}figcaption{font-weight:600}</style><h1>Packed dataset</h1><table>",
    );
    let share = |n: u64, of: u64| {
        format!("{:.2} %", if of == 0 { 0.0 } else { 100.0 * n as f64 / of as f64 })
    };
    for (k, v) in [
        (
            "rows",
            format!(
                "{} train, {} eval, of {} tokens in blocks of {}",
                m.packing.train_rows, m.packing.eval_rows, m.seq_len, m.bd_size
            ),
        ),
        (
            "conversations",
            format!("{} read = {} kept + {} dropped", c.rows_read, c.rows_kept, c.dropped_total()),
        ),
        ("slots filled", format!("{:.2} %", 100.0 * fill(m))),
        ("block padding", share(c.block_padding, slots(m))),
        ("tokens", c.tokens.to_string()),
        (
            "tokens with loss",
            format!("{} ({})", c.response_tokens, share(c.response_tokens, c.tokens)),
        ),
        (
            "tokens cut from over-long conversations",
            format!("{} ({})", c.tokens_cut, share(c.tokens_cut, c.tokens + c.tokens_cut)),
        ),
        ("template", m.template_source.clone()),
        ("mask token", format!("{} = {}", m.mask_token, m.mask_token_id)),
    ] {
        let _ = write!(o, "<tr><td>{}</td><td>{}</td></tr>", escape(k), escape(&v));
    }
    o.push_str("</table>");
    let blocks: Vec<_> = d
        .documents_by_blocks
        .iter()
        .enumerate()
        .skip(1)
        .map(|(b, &n)| ((b * m.bd_size).to_string(), n as f64))
        .collect();
    o.push_str(&bars("Document length in tokens, block padding included", &blocks, "documents"));
    let tenths: Vec<_> = d
        .documents_by_loss_tenth
        .iter()
        .enumerate()
        .map(|(k, &n)| (format!("{}–{} %", k * 10, k * 10 + 10), n as f64))
        .collect();
    o.push_str(&bars("Share of a document that carries loss", &tenths, "documents"));
    let rows: Vec<_> = d
        .rows_by_documents
        .iter()
        .enumerate()
        .skip(1)
        .map(|(k, &n)| (k.to_string(), n as f64))
        .collect();
    o.push_str(&bars("Documents in a row", &rows, "rows"));
    if !c.dropped.is_empty() {
        let dropped: Vec<_> = c.dropped.iter().map(|(k, &n)| (k.clone(), n as f64)).collect();
        o.push_str(&bars("Dropped, by reason", &dropped, "conversations"));
    }
    o.push_str("<h2>Sources</h2><table><tr><th>source</th><th>category</th><th>read</th><th>kept</th><th>tokens</th><th>share</th><th>loss</th><th>licences</th></tr>");
    for s in &m.sources {
        let _ = write!(
            o,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&s.name),
            escape(s.category.as_deref().unwrap_or("")),
            s.counts.rows_read,
            s.counts.rows_kept,
            s.counts.tokens,
            share(s.counts.tokens, c.tokens),
            share(s.counts.response_tokens, s.counts.tokens),
            escape(&s.licences.join(", "))
        );
    }
    o + "</table></html>\n"
}
