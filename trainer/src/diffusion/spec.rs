//! What is trained: packed rows, the objective and its settings.

/// Label that carries no loss.
pub const IGNORE: i32 = -100;

/// One row of a packed dataset.
#[derive(Clone, Debug, Default)]
pub struct PackedRow {
    /// Token ids, `[L]`.
    pub input_ids: Vec<i32>,
    /// Labels, `[L]`; [`IGNORE`] where no loss is taken.
    pub labels: Vec<i32>,
    /// Documents as (start, length); positions outside every document are row padding.
    pub documents: Vec<(usize, usize)>,
}

/// Which objective is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Noised copies next to clean ones, complementary views (the default).
    BlockDiffusion(Layout),
    /// Plain causal next-token loss on responses.
    Sft,
}

/// How the block-diffusion streams are laid out; both give the same loss and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Per view `[x_t ; x_0]`: 4L tokens a row.
    Reference,
    /// Shared clean copy, nothing that is not needed.
    Saving,
}

/// How documents bound attention and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentMask {
    /// Attention stays inside a document; positions restart (default).
    Document,
    /// As the published hub code: the row is one sequence, documents see each other.
    Hub,
}

/// What the layouts need to know besides the row.
#[derive(Clone, Copy, Debug)]
pub struct ObjectiveSpec {
    /// Tokens per block.
    pub bd_size: usize,
    /// Id of the mask token.
    pub mask_token_id: i32,
    /// Both complementary views (true) or view A alone.
    pub complementary: bool,
    /// Document isolation.
    pub document_mask: DocumentMask,
}

impl ObjectiveSpec {
    pub(super) fn views(&self) -> std::ops::Range<u8> {
        0..if self.complementary { 2 } else { 1 }
    }

    /// Documents of a row under this spec, and the row padding as (start, length) pairs with its
    /// document id.
    pub(super) fn documents(&self, row: &PackedRow) -> Vec<(i32, usize, usize)> {
        let len = row.input_ids.len();
        match self.document_mask {
            DocumentMask::Hub => vec![(0, 0, len)],
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
