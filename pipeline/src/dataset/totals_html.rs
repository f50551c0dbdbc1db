//! The totals of a dataset as one HTML page (`dlm-prep stats --html`), without external files.
//!
//! In: a dataset and its distributions. Out: the most important figures, charts of lengths and
//! fill, drop reasons with the first example of each, the sources, and a few rows.

use crate::dataset::rows_html::rows;
use crate::dataset::totals::{Distributions, fill, slots};
use dlm_datasets::Dataset;
use dlm_datasets::chart::{Axis, Chart, short};
use dlm_datasets::html::{self, escape};
use dlm_datasets::manifest::{Counts, Manifest, Source};
use std::fmt::Write;

/// Largest number of bars in a chart.
const BARS: usize = 64;
/// Largest number of sources in the table.
const SOURCES: usize = 200;

/// The page as HTML text.
pub(crate) fn page(ds: &Dataset, d: &Distributions) -> String {
    let m = ds.manifest();
    let folder = std::path::absolute(ds.dir()).unwrap_or_else(|_| ds.dir().to_path_buf());
    let name = folder.file_name().map_or("Packed dataset".into(), |n| n.to_string_lossy());
    let note = format!(
        "Packed for block diffusion: rows of {} tokens in blocks of {}. dlm-prep {}, dataset {}.",
        m.seq_len,
        m.bd_size,
        m.code_version,
        &ds.fingerprint()[..12.min(ds.fingerprint().len())]
    );
    let body = [figures(m), charts(m, d), dropped(m), sources(m), settings(m), rows(ds)].concat();
    html::page(&name, &note, &body)
}

fn share(n: u64, of: u64) -> String {
    format!("{:.2} %", if of == 0 { 0.0 } else { 100.0 * n as f64 / of as f64 })
}

/// The most important figures.
fn figures(m: &Manifest) -> String {
    let c = &m.counts;
    let rows = (m.packing.train_rows + m.packing.eval_rows) as u64;
    let whole = |n: u64| short(n as f64);
    html::tiles([
        ("conversations read", whole(c.rows_read)),
        ("kept", share(c.rows_kept, c.rows_read)),
        ("dropped", whole(c.dropped_total())),
        ("train rows", whole(m.packing.train_rows as u64)),
        ("eval rows", whole(m.packing.eval_rows as u64)),
        ("documents", whole(c.documents)),
        ("documents in a row", short(c.documents as f64 / rows.max(1) as f64)),
        ("tokens", whole(c.tokens)),
        ("tokens with loss", whole(c.response_tokens)),
        ("share with loss", share(c.response_tokens, c.tokens)),
        ("slots filled", format!("{:.2} %", 100.0 * fill(m))),
        ("slots of block padding", share(c.block_padding, slots(m))),
        ("cut from long ones", share(c.tokens_cut, c.tokens + c.tokens_cut)),
        ("turns with loss", whole(c.label_runs)),
        ("turns without an end", whole(c.unfinished_runs)),
    ])
}

/// A bar chart of counts over `x`, as a figure. `bars` has (from, to, count).
fn histogram(id: &str, title: &str, unit: &str, bars: &[(f64, f64, f64)], x: &str) -> String {
    let most = bars.iter().map(|b| b.2).fold(1.0, f64::max);
    let axis = Axis::exact(bars.iter().flat_map(|b| [b.0, b.1]));
    let y = Axis { lo: 0.0, hi: most * 1.06, log: false };
    let mut chart = Chart::new(id, &format!("{title}: {unit} by {x}"), axis, y);
    let all: f64 = bars.iter().map(|b| b.2).sum();
    chart.bars(bars, "bar k0", |b| {
        format!(
            "{} to {} {x}: {:.0} {unit}, {:.1} %",
            short(b.0),
            short(b.1),
            b.2,
            100.0 * b.2 / all.max(1.0)
        )
    });
    let whole = |v: f64| if v.fract() == 0.0 { short(v) } else { String::new() };
    format!(
        "<figure><figcaption><h2>{}</h2><span>{} by {}</span></figcaption>\n{}\n</figure>\n",
        escape(title),
        escape(unit),
        escape(x),
        chart.finish(short, whole)
    )
}

/// At most [`BARS`] bars of counts: count `i` stands for the values from `i` to `i + 1`, times
/// `unit`. Neighbours are joined where there are more counts.
fn bars(counts: &[u64], unit: f64) -> Vec<(f64, f64, f64)> {
    let joined = counts.len().div_ceil(BARS).max(1);
    let bar = |(k, c): (usize, &[u64])| {
        let from = k * joined;
        (from as f64 * unit, (from + joined) as f64 * unit, c.iter().sum::<u64>() as f64)
    };
    counts.chunks(joined).enumerate().map(bar).collect()
}

/// The distributions of lengths, loss and fill.
fn charts(m: &Manifest, d: &Distributions) -> String {
    // A document of b blocks stands in the bar that ends at b blocks.
    let lengths = bars(d.documents_by_blocks.get(1..).unwrap_or_default(), m.bd_size as f64);
    let loss = bars(&d.documents_by_loss_tenth, 10.0);
    // Full rows stand with those of 99 % and more; the axis begins at the emptiest row.
    let (below, full) = d.rows_by_fill.split_at(99.min(d.rows_by_fill.len()));
    let first = below.iter().position(|n| *n > 0).unwrap_or(99).min(90) / 10 * 10;
    let filled: Vec<(f64, f64, f64)> = below
        .iter()
        .copied()
        .chain([full.iter().sum()])
        .enumerate()
        .skip(first)
        .map(|(k, n)| (k as f64, k as f64 + 1.0, n as f64))
        .collect();
    // A bar stands over the number it counts.
    let documents: Vec<(f64, f64, f64)> =
        bars(&d.rows_by_documents, 1.0).iter().map(|b| (b.0 - 0.5, b.1 - 0.5, b.2)).collect();
    format!(
        "<div class=\"charts\">\n{}{}{}{}</div>\n",
        histogram("length", "Length of a document", "documents", &lengths, "tokens with padding"),
        histogram("loss", "Share of a document that carries loss", "documents", &loss, "%"),
        histogram("fill", "Fill of a row", "rows", &filled, "% of its slots inside documents"),
        histogram("row", "Documents in a row", "rows", &documents, "documents"),
    )
}

/// A table with a title. `head` and `rows` are text; the columns named in `wide` hold long text.
fn table(title: &str, head: &[&str], wide: &[usize], rows: &[Vec<String>]) -> String {
    let mut out = format!("<section><h2>{}</h2>\n<div class=\"scroll\"><table><tr>", escape(title));
    let class = |k: usize| if wide.contains(&k) { " class=\"text\"" } else { "" };
    for (k, name) in head.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(k), escape(name));
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>");
        for (k, cell) in row.iter().enumerate() {
            let class = class(k);
            let _ = write!(out, "<td{class}>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out + "</table></div></section>\n"
}

/// Why conversations were dropped, the most frequent reason first, with its first example.
fn dropped(m: &Manifest) -> String {
    let mut reasons: Vec<(&String, u64)> = m.counts.dropped.iter().map(|(k, n)| (k, *n)).collect();
    reasons.sort_by_key(|r| std::cmp::Reverse(r.1));
    let row = |(reason, n): &(&String, u64)| {
        let (place, message) = m.drop_examples.get(*reason).map_or_else(Default::default, |e| {
            (format!("{} row {}", e.file, e.row), e.message.clone())
        });
        vec![(*reason).clone(), n.to_string(), share(*n, m.counts.rows_read), place, message]
    };
    let rows: Vec<Vec<String>> = reasons.iter().map(row).collect();
    if rows.is_empty() {
        return "<section><h2>Dropped conversations</h2>\n<p>None.</p></section>\n".to_string();
    }
    let head = ["reason", "conversations", "share of all read", "first example", "what was found"];
    table("Dropped conversations", &head, &[3, 4], &rows)
}

/// The sources; of many, those with the most tokens.
fn sources(m: &Manifest) -> String {
    let name = |s: &Source| match &s.category {
        Some(category) => format!("{} [{category}]", s.name),
        None => s.name.clone(),
    };
    let origin = |s: &Source| {
        let (dataset, revision) = (s.dataset.as_deref(), s.revision.as_deref());
        let parts = [dataset, revision.map(|r| r.get(..12).unwrap_or(r))];
        parts.into_iter().flatten().collect::<Vec<_>>().join("@")
    };
    let row = |name: String, c: &Counts, licences: String, origin: String| {
        vec![
            name,
            c.rows_read.to_string(),
            c.rows_kept.to_string(),
            c.dropped_total().to_string(),
            c.documents.to_string(),
            c.tokens.to_string(),
            share(c.tokens, m.counts.tokens),
            c.response_tokens.to_string(),
            share(c.response_tokens, c.tokens),
            c.tokens_cut.to_string(),
            licences,
            origin,
        ]
    };
    let mut shown: Vec<&Source> = m.sources.iter().collect();
    let title = if shown.len() > SOURCES {
        shown.sort_by_key(|s| std::cmp::Reverse(s.counts.tokens));
        shown.truncate(SOURCES);
        format!(
            "Sources: the {SOURCES} of {} with the most tokens (`dlm-prep stats --json` has all)",
            m.sources.len()
        )
    } else {
        "Sources".to_string()
    };
    let head = [
        "source",
        "rows read",
        "kept",
        "dropped",
        "documents",
        "tokens",
        "share of tokens",
        "with loss",
        "share with loss",
        "tokens cut",
        "licences",
        "dataset",
    ];
    let mut rows: Vec<Vec<String>> = shown
        .into_iter()
        .map(|s| row(name(s), &s.counts, s.licences.join(", "), origin(s)))
        .collect();
    if m.sources.len() > 1 {
        rows.push(row("all".to_string(), &m.counts, String::new(), String::new()));
    }
    let mut out = table(&title, &head, &[10, 11], &rows);
    if !m.mixture.is_empty() {
        let row = |s: &dlm_datasets::manifest::MixtureShare| {
            vec![s.source.clone(), s.tokens.to_string(), format!("{:.2} %", 100.0 * s.share)]
        };
        let rows: Vec<Vec<String>> = m.mixture.iter().map(row).collect();
        out += &table("Mixture", &["source", "tokens", "share of tokens"], &[], &rows);
    }
    out
}

/// What decides the ids and labels, and other counts.
fn settings(m: &Manifest) -> String {
    let token = |text: &str, id: i32| format!("{text} = {id}");
    let mut rows = vec![
        ("template", m.template_source.clone()),
        ("mask token", token(&m.mask_token, m.mask_token_id)),
        ("pad token", token(&m.pad_token, m.pad_token_id)),
        ("eos token", token(&m.eos_token, m.eos_token_id)),
        (
            "a turn ends with",
            m.end_of_turn_ids.iter().map(i32::to_string).collect::<Vec<_>>().join(", "),
        ),
        ("ids in the tokenizer", m.vocab_size.to_string()),
        ("conversations longer than a row", format!("{} ({})", m.counts.over_long, m.over_long)),
        ("control-token strings in text", m.special_text.clone()),
        ("seed", m.seed.to_string()),
    ];
    rows.extend(m.counts.notes.iter().map(|(k, n)| (k.as_str(), n.to_string())));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(k, v)| vec![k.to_string(), v]).collect();
    table("Settings and other counts", &["", ""], &[1], &rows)
}
