//! What a packed row holds, position by position: prompt, response or padding, the borders of
//! blocks, and what the two complementary views of training hide. `inspect.rs` shows it as text,
//! `rows_html.rs` as HTML.

use dlm_datasets::{Document, IGNORE, Manifest, Row, Split, mask, verify};
use std::ops::Range;

/// The masks that training draws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskViews {
    /// The run's `train.seed`.
    pub seed: u64,
    /// Epoch, from 0. The eval split has the same masks in every epoch.
    pub epoch: u64,
    /// Smallest probability of hiding a token, the run's `conversion.noise_eps`.
    pub noise_eps: f64,
}

/// What a position is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Prompt,
    /// A response token, which carries loss.
    Response,
    /// Padding up to the end of a document's last block.
    Padding,
}

/// What each position of a document is.
pub(crate) fn parts(row: &Row, d: &Document, m: &Manifest) -> Vec<Part> {
    let range = d.start..d.start + d.length;
    let (ids, labels) = (&row.input_ids[range.clone()], &row.labels[range]);
    let padding = verify::summarize(ids, labels, m).block_padding as usize;
    labels
        .iter()
        .enumerate()
        .map(|(p, &label)| match label {
            _ if p >= d.length - padding => Part::Padding,
            IGNORE => Part::Prompt,
            _ => Part::Response,
        })
        .collect()
}

/// The positions of row `i` that view A and view B show as the mask token.
pub(crate) fn hidden(
    row: &Row,
    i: usize,
    split: Split,
    v: &MaskViews,
    m: &Manifest,
) -> [Vec<bool>; 2] {
    // Evaluation draws its masks with an epoch number of its own.
    let epoch = if split == Split::Eval { mask::EVAL_EPOCH } else { v.epoch };
    let drawn = mask::row_mask(v.seed, epoch, i as u64, m.seq_len, m.bd_size, v.noise_eps);
    mask::views(&drawn, row.labels)
}

/// The longest ranges of equal `styles` that cross no border of a block.
pub(crate) fn runs<S: PartialEq>(styles: &[S], bd_size: usize) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut p = 0;
    while p < styles.len() {
        let border = styles.len().min((p / bd_size + 1) * bd_size);
        let end = (p..border).find(|&q| styles[q] != styles[p]).unwrap_or(border);
        out.push(p..end);
        p = end;
    }
    out
}

/// Replaces control characters, because text from a dataset must not control a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}
