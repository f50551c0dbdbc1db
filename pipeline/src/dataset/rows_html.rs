//! A few rows of a dataset as HTML: prompt, response, padding, borders of blocks, and what each
//! view of training hides.
//!
//! In: the dataset, its tokenizer. Out: HTML without scripts: two classes mark what view A and view
//! B hide, and the style sheet applies the one that the reader selects.

use crate::dataset::row_view::{MaskViews, Part, hidden, parts, printable, runs};
use crate::error::Result;
use crate::tokenize::tokenizer::Tokenizer;
use dlm_datasets::html::escape;
use dlm_datasets::{Dataset, IGNORE, Row, Split, mask};
use std::fmt::Write;

/// Number of rows shown.
const ROWS: usize = 3;
/// Number of positions shown of each row.
const POSITIONS: usize = 2048;
/// The masks shown: those of the first epoch under the default `train.seed` and
/// `conversion.noise_eps`.
const VIEWS: MaskViews = MaskViews { seed: 42, epoch: 0, noise_eps: mask::NOISE_EPS };

/// The first, a middle and the last row of the train split (of the eval split if that is all).
pub(crate) fn rows(ds: &Dataset) -> String {
    let split = if ds.rows(Split::Train) > 0 { Split::Train } else { Split::Eval };
    let last = ds.rows(split).saturating_sub(1);
    let mut shown = vec![0, last / 2, last];
    shown.dedup();
    let mut out = format!(
        "<section><h2>Rows as training sees them</h2>\n<p class=\"note legend\"><i class=\"prompt\">prompt</i><i class=\"loss\">response, carries loss</i><i class=\"padding\">·3·</i> padding tokens <i class=\"border\">¦</i> border of a block of {} <i class=\"hidden\">▒▒</i> hidden in the selected view. Views of train.seed {}, epoch {}; <code>dlm-prep inspect</code> shows other rows, seeds and epochs.</p>\n",
        ds.manifest().bd_size,
        VIEWS.seed,
        VIEWS.epoch
    );
    let tokenizer = match Tokenizer::load(&ds.dir().join("tokenizer")) {
        Ok(t) if ds.rows(split) > 0 => t,
        Ok(_) => return out + "<p>The dataset has no rows.</p>\n</section>\n",
        Err(e) => {
            let _ = write!(out, "<p>Not shown: {}</p>\n</section>\n", escape(&e.to_string()));
            return out;
        }
    };
    for i in shown.into_iter().take(ROWS) {
        let row = ds.row(split, i).map_err(crate::Error::from);
        let html = row.and_then(|row| show(ds, &tokenizer, split, i, &row));
        match html {
            Ok(html) => out.push_str(&html),
            Err(e) => {
                let _ = writeln!(out, "<p>Row {i}: {}</p>", escape(&e.to_string()));
            }
        }
    }
    out + "</section>\n"
}

/// One row.
fn show(ds: &Dataset, tokenizer: &Tokenizer, split: Split, i: usize, row: &Row) -> Result<String> {
    let m = ds.manifest();
    let hidden = hidden(row, i, split, &VIEWS, m);
    let loss = row.labels.iter().filter(|&&l| l != IGNORE).count();
    let mut out = format!(
        "<div class=\"row\"><h3>Row {i} of the {} split: {} documents, {loss} of {} positions carry loss</h3>\n",
        split.name(),
        row.documents.len(),
        m.seq_len
    );
    for (k, (class, label)) in
        [("text", "nothing hidden"), ("view-a", "view A"), ("view-b", "view B")].iter().enumerate()
    {
        let checked = if k == 0 { " checked" } else { "" };
        let _ = write!(
            out,
            "<input type=\"radio\" name=\"row{i}\" id=\"row{i}-{k}\" class=\"{class}\"{checked}><label for=\"row{i}-{k}\">{label}</label>"
        );
    }
    let mut left = POSITIONS;
    for (k, d) in row.documents.iter().enumerate() {
        if left == 0 {
            let _ = write!(out, "<h4>… and {} more documents</h4>", row.documents.len() - k);
            break;
        }
        let parts = parts(row, d, m);
        let _ = write!(
            out,
            "\n<h4>document {k}: positions {}..{}, {} blocks, {} padding tokens, from {}</h4>\n<pre>",
            d.start,
            d.start + d.length,
            d.length / m.bd_size,
            parts.iter().filter(|p| **p == Part::Padding).count(),
            escape(m.sources.get(d.source).map_or("?", |s| s.name.as_str()))
        );
        let styles: Vec<(Part, bool)> = parts
            .into_iter()
            .zip(&hidden[0][d.start..])
            .take(left)
            .map(|(part, &in_a)| (part, in_a))
            .collect();
        for range in runs(&styles, m.bd_size) {
            let (part, in_a) = styles[range.start];
            if range.start % m.bd_size == 0 && range.start > 0 {
                out.push_str("<i class=\"border\">¦</i>");
            }
            let ids: Vec<u32> = row.input_ids[d.start..][range.clone()]
                .iter()
                .map(|&id| id.max(0) as u32)
                .collect();
            let (class, text) = match part {
                Part::Padding => ("padding", format!("·{}·", range.len())),
                Part::Prompt => ("prompt", tokenizer.decode(&ids, false)?),
                Part::Response if in_a => ("loss a", tokenizer.decode(&ids, false)?),
                Part::Response => ("loss b", tokenizer.decode(&ids, false)?),
            };
            let _ = write!(out, "<i class=\"{class}\">{}</i>", escape(&printable(&text)));
        }
        out.push_str("</pre>");
        if styles.len() < d.length {
            let _ = write!(out, "<h4>… and {} more positions</h4>", d.length - styles.len());
        }
        left -= styles.len();
    }
    let end = row.documents.last().map_or(0, |d| d.start + d.length);
    if end < m.seq_len {
        let _ = write!(out, "\n<h4>{} slots of row padding</h4>", m.seq_len - end);
    }
    Ok(out + "</div>\n")
}
