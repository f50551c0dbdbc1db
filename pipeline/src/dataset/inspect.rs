//! Shows packed rows as text: what is prompt, response and padding, where blocks begin, and what
//! the two complementary views of training hide.

use crate::dataset::row_view::{self, MaskViews, Part, printable};
use crate::error::Result;
use crate::tokenize::tokenizer::Tokenizer;
use dlm_datasets::{Dataset, IGNORE, Split};
use std::fmt::Write;
use std::path::Path;

/// Which rows are shown, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct InspectOptions {
    /// The split that the rows are taken from.
    pub split: Split,
    /// Index of the first row.
    pub row: usize,
    /// Number of rows, at least 1.
    pub rows: usize,
    /// The masks to show; none: the text without masks.
    pub views: Option<MaskViews>,
    /// Whether prompt, response and padding have terminal colours (ANSI escape sequences). Without
    /// them the response stands in brackets.
    pub colour: bool,
}

impl Default for InspectOptions {
    fn default() -> Self {
        InspectOptions { split: Split::Train, row: 0, rows: 1, views: None, colour: false }
    }
}

/// How a position is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Shown(Part),
    Hidden,
}

impl Style {
    /// The ANSI escape sequence that begins it.
    fn code(self) -> &'static str {
        match self {
            Style::Shown(Part::Prompt) => "\x1b[2m",
            Style::Shown(Part::Response) => "\x1b[32m",
            Style::Shown(Part::Padding) => "\x1b[90m",
            Style::Hidden => "\x1b[7;33m",
        }
    }
}

/// Rows of the dataset in the folder `dir`, as text for people.
///
/// # Errors
///
/// [`Error::Dataset`](crate::Error::Dataset) if the folder is not a dataset or has no such row,
/// [`Error::Tokenizer`](crate::Error::Tokenizer) if its tokenizer cannot be loaded.
pub fn inspect(dir: impl AsRef<Path>, options: &InspectOptions) -> Result<String> {
    let dir = dir.as_ref();
    let ds = Dataset::open(dir)?;
    let tokenizer = Tokenizer::load(&dir.join("tokenizer"))?;
    let mut out = String::new();
    for i in options.row..options.row.saturating_add(options.rows.max(1)) {
        show(&ds, &tokenizer, options, i, &mut out)?;
    }
    Ok(out)
}

/// Appends row `i`.
fn show(
    ds: &Dataset,
    tokenizer: &Tokenizer,
    options: &InspectOptions,
    i: usize,
    out: &mut String,
) -> Result<()> {
    let (split, views, colour) = (options.split, options.views, options.colour);
    let m = ds.manifest();
    let row = ds.row(split, i)?;
    let hidden =
        views.map_or([const { Vec::new() }; 2], |v| row_view::hidden(&row, i, split, &v, m));
    let loss = row.labels.iter().filter(|&&l| l != IGNORE).count();
    let _ = writeln!(
        out,
        "row {i} of the {} split: {} documents, {loss} of {} positions carry loss",
        split.name(),
        row.documents.len(),
        m.seq_len
    );
    for (k, d) in row.documents.iter().enumerate() {
        let source = m.sources.get(d.source).map_or("?", |s| s.name.as_str());
        let ids = &row.input_ids[d.start..d.start + d.length];
        let parts = row_view::parts(&row, d, m);
        let padding = parts.iter().filter(|p| **p == Part::Padding).count();
        let _ = writeln!(
            out,
            "── document {k}: positions {}..{}, {} blocks, {padding} padding tokens, from {source}",
            d.start,
            d.start + d.length,
            d.length / m.bd_size
        );
        let styles: Vec<Style> = parts.into_iter().map(Style::Shown).collect();
        match views {
            None => append_text(ids, &styles, m.bd_size, tokenizer, colour, out)?,
            Some(_) => {
                for (name, hidden) in
                    ["A", "B (hides what A shows of the response)"].iter().zip(&hidden)
                {
                    let _ = writeln!(out, "   view {name}:");
                    let styles: Vec<Style> = styles
                        .iter()
                        .zip(&hidden[d.start..d.start + d.length])
                        .map(|(l, h)| if *h { Style::Hidden } else { *l })
                        .collect();
                    append_text(ids, &styles, m.bd_size, tokenizer, colour, out)?;
                }
            }
        }
    }
    let end = row.documents.last().map_or(0, |d| d.start + d.length);
    if end < m.seq_len {
        let _ = writeln!(out, "── {} slots of row padding", m.seq_len - end);
    }
    Ok(())
}

/// Appends the decoded text, one run of positions of the same style at a time, with `¦` at the
/// start of each block but the first.
fn append_text(
    ids: &[i32],
    styles: &[Style],
    bd_size: usize,
    tokenizer: &Tokenizer,
    colour: bool,
    out: &mut String,
) -> Result<()> {
    for range in row_view::runs(styles, bd_size) {
        let (p, tokens) = (range.start, range.len());
        if p % bd_size == 0 && p > 0 {
            out.push_str(if colour { "\x1b[36m¦\x1b[0m" } else { "¦" });
        }
        let run: Vec<u32> = ids[range].iter().map(|&i| i.max(0) as u32).collect();
        let shown = match styles[p] {
            Style::Shown(Part::Padding) => format!("·{tokens}·"),
            Style::Hidden => "▒".repeat(tokens),
            Style::Shown(_) => tokenizer.decode(&run, false)?,
        };
        let shown = printable(&shown);
        match (colour, styles[p]) {
            (true, style) => {
                let _ = write!(out, "{}{shown}\x1b[0m", style.code());
            }
            (false, Style::Shown(Part::Response)) => {
                let _ = write!(out, "[{shown}]");
            }
            (false, _) => out.push_str(&shown),
        }
    }
    out.push('\n');
    Ok(())
}
