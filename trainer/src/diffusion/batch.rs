//! The streams of several packed rows as one batch for the decoder: rectangular, or flat for
//! attention by tiles.
//!
//! In: packed rows and their masks. Out: a [`Batch`] with ids, positions, tiles and targets; stream
//! positions count over the whole batch, T = rows · len.

use super::layout::{self, Stream, StreamRole, Target, Token, sees};
use super::runs;
use super::spec::{DocumentMask, IGNORE, Layout, Objective, ObjectiveSpec, PackedRow};
use crate::attention::{KeyRange, Tile};
use crate::compute::StreamShape;

/// The decoder's batch for packed rows and their masks (`hidden[row][position]`, unused for
/// [`Objective::Sft`]).
pub(crate) fn build_batch(
    objective: Objective,
    rows: &[PackedRow],
    hidden: &[Vec<bool>],
    spec: &ObjectiveSpec,
    shape: StreamShape,
) -> Batch {
    let mut streams = Vec::with_capacity(rows.len() * 2);
    for (i, row) in rows.iter().enumerate() {
        match objective {
            Objective::BlockDiffusion(Layout::Reference) => {
                streams.extend(layout::reference(row, &hidden[i], spec))
            }
            Objective::BlockDiffusion(Layout::Saving) => {
                streams.push(layout::saving(row, &hidden[i], spec))
            }
            Objective::Sft => streams.push(layout::causal(row, spec)),
            Objective::Lossless { layout: Layout::Reference, taught, .. } => {
                streams.extend(runs::reference(row, &hidden[i], spec, taught))
            }
            Objective::Lossless { layout: Layout::Saving, taught, .. } => {
                streams.push(runs::saving(row, &hidden[i], spec, taught))
            }
        }
    }
    let order = match objective {
        Objective::BlockDiffusion(_) => Order::Blocks,
        Objective::Sft => Order::Causal,
        Objective::Lossless { .. } => Order::Runs,
    };
    if objective == Objective::BlockDiffusion(Layout::Reference) {
        // view A of all rows first, then view B, as in the published implementation
        let views = streams.len() / rows.len().max(1);
        let streams: Vec<_> = (0..views)
            .flat_map(|v| streams.iter().skip(v).step_by(views).cloned().collect::<Vec<_>>())
            .collect();
        return Batch::rectangular(&streams, 1, order);
    }
    match shape {
        StreamShape::Flat => Batch::flat(&streams, 1, order),
        StreamShape::Rectangular { multiple } => Batch::rectangular(&streams, multiple, order),
    }
}

/// Number of targets of a row, without building its layout: every labelled token, with the token
/// shift except the first of a document, once over both views.
pub(crate) fn count_targets(
    row: &PackedRow,
    spec: &ObjectiveSpec,
    objective: Objective,
    hidden: Option<&[bool]>,
) -> usize {
    if let Objective::Lossless { .. } = objective {
        return runs::count(row, hidden.unwrap_or_default(), spec);
    }
    // the causal loss is always shifted
    let shift = if objective == Objective::Sft { 1 } else { spec.shift() };
    let one_view = matches!(objective, Objective::BlockDiffusion(_)) && !spec.complementary;
    let whole = [(0, row.input_ids.len())];
    let documents: &[(usize, usize)] = match spec.document_mask {
        DocumentMask::Document => &row.documents,
        DocumentMask::None => &whole,
    };
    documents
        .iter()
        .flat_map(|&(start, n)| start + shift..start + n)
        .filter(|&i| row.labels[i] != IGNORE && (!one_view || hidden.is_some_and(|h| h[i])))
        .count()
}

/// Streams side by side.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// B: the number of streams when rectangular, 1 when flat.
    pub rows: usize,
    /// S: the length of a row, padding included.
    pub len: usize,
    /// `[B · S]`.
    pub tokens: Vec<Token>,
    /// Tiles in positions of the whole batch.
    pub tiles: Vec<Tile>,
    /// Targets; `at` is a position of the whole batch.
    pub targets: Vec<Target>,
    /// For each target the position of the clean token that predicts the same token, in positions
    /// of the whole batch; empty where that is not asked for.
    pub teachers: Vec<usize>,
    /// Entries that are not padding.
    pub processed: usize,
    order: Order,
}

/// Who sees whom in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As [`layout::sees`] says.
    Blocks,
    /// Each token those before it.
    Causal,
    /// As [`runs::sees`] says.
    Runs,
}

const PAD: Token = Token { id: 0, position: 0, document: -1, block: 0, role: StreamRole::Pad };

impl Batch {
    /// One stream per row, each padded to the length of the longest, rounded up to `multiple`.
    pub(crate) fn rectangular(streams: &[Stream], multiple: usize, order: Order) -> Batch {
        let longest = streams.iter().map(|s| s.tokens.len()).max().unwrap_or(0).max(1);
        let len = longest.next_multiple_of(multiple.max(1));
        let mut b = Batch::empty(streams.len(), len, order);
        for (row, s) in streams.iter().enumerate() {
            b.push(s);
            b.pad_to((row + 1) * len);
        }
        b
    }

    /// All streams end to end in one row, which is padded to a multiple of `multiple`.
    pub(crate) fn flat(streams: &[Stream], multiple: usize, order: Order) -> Batch {
        let total: usize = streams.iter().map(|s| s.tokens.len()).sum();
        let len = total.max(1).next_multiple_of(multiple.max(1));
        let mut b = Batch::empty(1, len, order);
        for s in streams {
            b.push(s);
        }
        b.pad_to(len);
        b
    }

    fn empty(rows: usize, len: usize, order: Order) -> Batch {
        Batch {
            rows,
            len,
            tokens: Vec::with_capacity(rows * len),
            tiles: Vec::new(),
            targets: Vec::new(),
            teachers: Vec::new(),
            processed: 0,
            order,
        }
    }

    fn push(&mut self, s: &Stream) {
        let at = self.tokens.len();
        self.tokens.extend_from_slice(&s.tokens);
        self.processed += s.tokens.len();
        self.tiles.extend(s.tiles.iter().map(|t| t.moved(at)));
        self.targets.extend(s.targets.iter().map(|t| Target { at: t.at + at, id: t.id }));
        self.teachers.extend(s.teachers.iter().map(|teacher| teacher + at));
    }

    fn pad_to(&mut self, end: usize) {
        let at = self.tokens.len();
        if at < end {
            // padding sees itself only
            let len = end - at;
            self.tiles.push(Tile::new(at, len, KeyRange::new(at, 0), KeyRange::new(at, len)));
        }
        self.tokens.resize(end, PAD);
    }

    /// Token ids, `[B · S]`.
    pub(crate) fn ids(&self) -> Vec<i32> {
        self.tokens.iter().map(|t| t.id).collect()
    }

    /// 1 where a token is a noised one, else 0, `[B · S]`.
    pub(crate) fn noised(&self) -> Vec<f32> {
        let is = |t: &Token| f32::from(u8::from(matches!(t.role, StreamRole::Noised(_))));
        self.tokens.iter().map(is).collect()
    }

    /// For each target of a run of masks how many masks of its run stand before the one that
    /// predicts it.
    pub(crate) fn distances(&self) -> Vec<usize> {
        let of = |target: &Target| {
            let mask = &self.tokens[target.at];
            mask.position.saturating_sub(mask.block).max(0) as usize
        };
        self.targets.iter().map(of).collect()
    }

    /// Positions, `[B · S]`.
    pub(crate) fn positions(&self) -> Vec<i32> {
        self.tokens.iter().map(|t| t.position).collect()
    }

    /// The dense mask `[B, S, S]`, true = hidden, computed from [`sees`] and not from the tiles.
    pub(crate) fn dense_mask(&self) -> Vec<bool> {
        let s = self.len;
        let mut out = vec![true; self.rows * s * s];
        for r in 0..self.rows {
            let row = &self.tokens[r * s..(r + 1) * s];
            for (i, q) in row.iter().enumerate() {
                for (j, k) in row.iter().enumerate() {
                    let seen = match self.order {
                        Order::Causal => {
                            q.document == k.document
                                && q.role == k.role
                                && (j <= i || q.role == StreamRole::Pad)
                        }
                        Order::Blocks => sees(q, k),
                        Order::Runs => runs::sees(q, k),
                    };
                    out[(r * s + i) * s + j] = !seen;
                }
            }
        }
        out
    }

    /// The dense mask computed from the tiles; a test compares it with [`Batch::dense_mask`].
    #[cfg(test)]
    pub(crate) fn dense_mask_from_tiles(&self) -> Vec<bool> {
        let s = self.len;
        let mut out = vec![true; self.rows * s * s];
        for t in &self.tiles {
            for i in 0..t.len() {
                let q = t.query() + i;
                let row = q / s;
                let mut see = |k: usize| out[q * s + (k - row * s)] = false;
                let (prefix, own) = (t.prefix(), t.own());
                (prefix.start..prefix.start + prefix.len).for_each(&mut see);
                (own.start..own.start + t.own_seen_by(i)).for_each(&mut see);
            }
        }
        out
    }
}
