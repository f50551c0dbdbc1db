//! What is trained: packed rows, the objective and its settings. Formal definition:
//! `docs/objective.md`.

/// Label that carries no loss.
pub(crate) const IGNORE: i32 = -100;

/// One row of a packed dataset.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedRow {
    /// Token ids, `[L]`.
    pub input_ids: Vec<i32>,
    /// Labels, `[L]`; [`IGNORE`] where there is no loss.
    pub labels: Vec<i32>,
    /// Documents as (start, length); positions outside every document are row padding.
    pub documents: Vec<(usize, usize)>,
}

/// The training objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Objective {
    /// Noised copies of the tokens next to clean ones, in complementary views (the default).
    BlockDiffusion(Layout),
    /// The causal next-token loss on responses.
    Sft,
    /// Runs of mask tokens behind the clean prefix propose the next tokens; clean tokens are the
    /// source's own.
    Lossless {
        layout: Layout,
        /// Starting offsets of blocks in each row.
        offsets: usize,
        /// Whether the source's own predictions are computed beside the proposals.
        taught: bool,
    },
}

/// How block-diffusion streams are laid out; both layouts give the same loss and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Per view `[x_t ; x_0]`: 4L tokens a row.
    Reference,
    /// One clean copy for both views, without the blocks that no counted prediction needs.
    Saving,
}

/// How documents bound attention and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DocumentMask {
    /// Attention stays inside a document, and positions restart with it (default).
    Document,
    /// The row is one sequence whose documents attend to each other, as in the published code.
    None,
}

/// Settings of the objective.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObjectiveSpec {
    /// Tokens per block.
    pub bd_size: usize,
    pub mask_token_id: i32,
    /// Train both complementary views, or view A alone.
    pub complementary: bool,
    pub document_mask: DocumentMask,
    /// The logits at position i-1 predict token i (Fast-dLLM v2); without it those at position i
    /// (SDAR).
    pub token_shift: bool,
}

impl ObjectiveSpec {
    pub(super) fn views(&self) -> std::ops::Range<u8> {
        0..if self.complementary { 2 } else { 1 }
    }

    /// Positions between the logits that predict a token and the token: 1 with the token shift.
    pub(crate) fn shift(&self) -> usize {
        usize::from(self.token_shift)
    }

    /// The documents of a row and its padding as (document id, start, length); padding has id -1.
    pub(crate) fn documents(&self, row: &PackedRow) -> Vec<(i32, usize, usize)> {
        let len = row.input_ids.len();
        match self.document_mask {
            DocumentMask::None => vec![(0, 0, len)],
            DocumentMask::Document => {
                let mut out = Vec::with_capacity(row.documents.len() + 1);
                let mut end = 0;
                for (i, &(start, n)) in row.documents.iter().enumerate() {
                    if start > end {
                        out.push((-1, end, start - end));
                    }
                    out.push((i as i32, start, n));
                    end = start + n;
                }
                if end < len {
                    out.push((-1, end, len - end));
                }
                out
            }
        }
    }
}
