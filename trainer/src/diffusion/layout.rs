//! From a packed row and a mask to the token stream that the decoder runs on.
//!
//! In: [`PackedRow`] (ids, labels, documents) and `hidden[L]`. Out: [`Stream`]s: tokens with
//! position, document, block and copy; *tiles*, which say which key ranges each run of queries
//! sees; *targets*, which say which stream position predicts which token.
//!
//! Three layouts of the same objective:
//! - [`reference`]: per view one stream `[x_t ; x_0]` of 2L tokens, 4L together (the published
//!   formulation);
//! - [`saving`]: one stream in which both views share the clean copy. Noised blocks that predict no
//!   counted token are dropped, clean blocks that nothing needs are dropped, and noised blocks
//!   without a mask are read from the clean copy;
//! - [`causal`]: the row itself under a causal mask (`objective=sft`).
//!
//! Rules (Fast-dLLM v2, arXiv:2509.26328, section 3.2 and appendix A.2; `docs/objective.md`): a
//! noised token sees its own noised block in both directions and the clean tokens of strictly
//! earlier blocks; a clean token sees clean tokens of its own and earlier blocks; nothing sees
//! another document. By the token shift, the logits at position i-1 predict token i; without it
//! those at position i (`conversion.token_shift=false`).

use super::spec::{IGNORE, ObjectiveSpec, PackedRow};
use crate::attention::{KeyRange, Tile};

/// Which copy of a token a stream entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamRole {
    /// The clean token.
    Clean,
    /// The noised token of view 0 (A) or 1 (B).
    Noised(u8),
    /// Padding of the stream.
    Pad,
}

/// One entry of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    /// Token id; the mask id where the token is hidden.
    pub id: i32,
    /// Position within the document.
    pub position: i32,
    /// Document within the row, -1 for row padding.
    pub document: i32,
    /// Block within the document.
    pub block: i32,
    pub role: StreamRole,
}

/// A prediction that counts: the logits at stream position `at` predict token `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub at: usize,
    pub id: i32,
}

/// A sequence of tokens that attend among themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    pub tokens: Vec<Token>,
    /// Which keys each token sees; together the tiles cover every token once.
    pub tiles: Vec<Tile>,
    pub targets: Vec<Target>,
    /// For each target the stream position of the clean token that predicts the same token; empty
    /// where that is not asked for.
    pub teachers: Vec<usize>,
}

/// Whether the token at `i` is hidden in `view`.
fn is_hidden(row: &PackedRow, hidden: &[bool], view: u8, i: usize) -> bool {
    row.labels[i] != IGNORE && (hidden[i] == (view == 0))
}

/// Whether a query sees a key in the two diffusion layouts: the reference that tests compare the
/// tiles with.
pub(crate) fn sees(q: &Token, k: &Token) -> bool {
    q.document == k.document
        && match (q.role, k.role) {
            (StreamRole::Clean, StreamRole::Clean) => k.block <= q.block,
            (StreamRole::Noised(a), StreamRole::Noised(b)) => a == b && k.block == q.block,
            (StreamRole::Noised(_), StreamRole::Clean) => k.block < q.block,
            (StreamRole::Pad, StreamRole::Pad) => true,
            _ => false,
        }
}

/// The published formulation: for each view one stream `[x_t ; x_0]`, every position kept.
pub(crate) fn reference(row: &PackedRow, hidden: &[bool], spec: &ObjectiveSpec) -> Vec<Stream> {
    let len = row.input_ids.len();
    let documents = spec.documents(row);
    let shift = spec.shift();
    spec.views()
        .map(|view| {
            let mut s = Stream::default();
            for role in [StreamRole::Noised(view), StreamRole::Clean] {
                let noised = role != StreamRole::Clean;
                for &(doc, start, n) in &documents {
                    for j in 0..n {
                        let i = start + j;
                        let mask = noised && is_hidden(row, hidden, view, i);
                        s.tokens.push(Token {
                            id: if mask { spec.mask_token_id } else { row.input_ids[i] },
                            position: j as i32,
                            document: doc,
                            block: (j / spec.bd_size) as i32,
                            role,
                        });
                        if mask && j >= shift && doc >= 0 {
                            s.targets.push(Target { at: i - shift, id: row.input_ids[i] });
                        }
                    }
                    for b in 0..n.div_ceil(spec.bd_size) {
                        let first = b * spec.bd_size;
                        let in_block = spec.bd_size.min(n - first);
                        let clean = len + start;
                        let at = if noised { start + first } else { clean + first };
                        let prefix = KeyRange::new(clean, first);
                        s.tiles.push(Tile::new(at, in_block, prefix, KeyRange::new(at, in_block)));
                    }
                }
            }
            s
        })
        .collect()
}

/// The same objective on fewer tokens; equal to [`reference`] in loss and gradients.
///
/// A view's noised block is needed when one of its positions predicts a counted token. If nothing
/// in it is hidden in that view, its hidden states are those of the clean block, and the logits are
/// read there (with the token shift alone: without it a block predicts what it hides). A clean
/// block is needed when a later noised block is kept or its own logits are read.
pub(crate) fn saving(row: &PackedRow, hidden: &[bool], spec: &ObjectiveSpec) -> Stream {
    let (bd, shift) = (spec.bd_size, spec.shift());
    let mut s = Stream::default();
    for (doc, start, n) in spec.documents(row) {
        if doc < 0 {
            continue;
        }
        let blocks = n.div_ceil(bd);
        let span = |b: usize| (b * bd, bd.min(n - b * bd));
        // (view, block) pairs whose noised block is kept, those that are read from the clean copy,
        // and the number of clean blocks needed
        let mut noised: Vec<(u8, usize)> = Vec::new();
        let mut read_clean: Vec<(u8, usize)> = Vec::new();
        let mut clean_blocks = 0;
        for view in spec.views() {
            for b in 0..blocks {
                let (first, len) = span(b);
                let counted = |j: usize| j < n && is_hidden(row, hidden, view, start + j);
                if !(first..first + len).any(|j| counted(j + shift)) {
                    continue;
                }
                if (first..first + len).any(|j| is_hidden(row, hidden, view, start + j)) {
                    noised.push((view, b));
                    clean_blocks = clean_blocks.max(b);
                } else {
                    read_clean.push((view, b));
                    clean_blocks = clean_blocks.max(b + 1);
                }
            }
        }
        let clean = s.tokens.len();
        for b in 0..clean_blocks {
            let (first, len) = span(b);
            let (at, prefix) = (clean + first, KeyRange::new(clean, first));
            s.tiles.push(Tile::new(at, len, prefix, KeyRange::new(at, len)));
            for j in first..first + len {
                s.tokens.push(Token {
                    id: row.input_ids[start + j],
                    position: j as i32,
                    document: doc,
                    block: b as i32,
                    role: StreamRole::Clean,
                });
            }
        }
        let predict = |s: &mut Stream, view: u8, b: usize, at: usize| {
            let (first, len) = span(b);
            for j in first..first + len {
                let token = j + shift;
                if token < n && is_hidden(row, hidden, view, start + token) {
                    s.targets.push(Target { at: at + j - first, id: row.input_ids[start + token] });
                }
            }
        };
        for &(view, b) in &read_clean {
            predict(&mut s, view, b, clean + b * bd);
        }
        for &(view, b) in &noised {
            let (first, len) = span(b);
            let at = s.tokens.len();
            let prefix = KeyRange::new(clean, first);
            s.tiles.push(Tile::new(at, len, prefix, KeyRange::new(at, len)));
            for j in first..first + len {
                let i = start + j;
                s.tokens.push(Token {
                    id: if is_hidden(row, hidden, view, i) {
                        spec.mask_token_id
                    } else {
                        row.input_ids[i]
                    },
                    position: j as i32,
                    document: doc,
                    block: b as i32,
                    role: StreamRole::Noised(view),
                });
            }
            predict(&mut s, view, b, at);
        }
    }
    s
}

/// The row under a causal mask, with response-only loss: `objective=sft`.
pub(crate) fn causal(row: &PackedRow, spec: &ObjectiveSpec) -> Stream {
    let mut s = Stream::default();
    for (doc, start, n) in spec.documents(row) {
        s.tiles.push(Tile::causal(start, n, KeyRange::new(start, 0), start));
        for j in 0..n {
            let i = start + j;
            s.tokens.push(Token {
                id: row.input_ids[i],
                position: j as i32,
                document: doc,
                block: 0,
                role: StreamRole::Clean,
            });
            if j > 0 && doc >= 0 && row.labels[i] != IGNORE {
                s.targets.push(Target { at: i - 1, id: row.labels[i] });
            }
        }
    }
    s
}
