//! How many tokens a forward pass of block decoding fixes on held-out completions, without decoding
//! them one after the other.
//!
//! In: packed rows and what predicts. Out: [`SimulatedDecode`]: the completions of the rows decoded
//! by the rules of `decode/block.rs`, with each fixed token replaced by the right one. The right
//! tokens make every sub-block independent of the others, so that one pass serves a sub-block of
//! every block at once: a document's clean tokens once, and for each sub-block a copy of its block
//! behind them. Passes are counted as decoding would make them. Rules: `docs/objective.md`.

use crate::attention::{KeyRange, Tile};
use crate::compute::StreamShape;
use crate::diffusion::batch::Order;
use crate::diffusion::layout::{Stream, StreamRole, Target, Token};
use crate::diffusion::{Batch, IGNORE, ObjectiveSpec, PackedRow};
use crate::error::Result;
use crate::kernels::most_probable::MostProbable;
use crate::report::held_out::SimulatedDecode;

/// Probability above which a token is fixed.
pub(crate) const THRESHOLD: f64 = 0.9;
/// Tokens per sub-block, where the block size is a multiple.
const SUB_BLOCK: usize = 8;
/// Copies of one block in a pass; a layout tells copies apart by a byte.
const MOST_COPIES: usize = 255;

/// One sub-block that is being filled, in a copy of its block.
struct SubBlock {
    /// Index in [`ObjectiveSpec::documents`].
    document: usize,
    /// Index of its block in the document.
    block: usize,
    /// Tokens of the block, `[bd_size]`, the mask token where they are open or behind the
    /// completion.
    ids: Vec<i32>,
    /// Positions in the block that are still to be filled, ascending.
    open: Vec<usize>,
    /// The right tokens of the block up to the end of the completion in it.
    right: Vec<i32>,
}

/// Counts of a simulated decode.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    tokens: usize,
    passes: usize,
    completions: usize,
}

/// The largest sub-block of at most eight tokens that divides a block.
pub(crate) fn sub_block_size(bd_size: usize) -> usize {
    (1..=SUB_BLOCK.min(bd_size)).rev().find(|size| bd_size.is_multiple_of(*size)).unwrap_or(1)
}

/// Decodes the completions of `rows`, `at_a_time` rows in a pass; `predict` says the most probable
/// token for each target of a batch. Nothing where the rows hold no completion.
pub(crate) fn simulate(
    rows: &[PackedRow],
    at_a_time: usize,
    spec: &ObjectiveSpec,
    shape: StreamShape,
    mut predict: impl FnMut(&Batch) -> Result<Vec<MostProbable>>,
) -> Result<Option<SimulatedDecode>> {
    let sub = sub_block_size(spec.bd_size);
    let mut counts = Counts::default();
    for rows in rows.chunks(at_a_time.max(1)) {
        let mut filling: Vec<Vec<SubBlock>> =
            rows.iter().map(|row| sub_blocks(row, spec, sub, &mut counts)).collect();
        while filling.iter().any(|row| !row.is_empty()) {
            let mut streams = Vec::new();
            for (row, filling) in rows.iter().zip(&filling).filter(|(_, f)| !f.is_empty()) {
                streams.push(stream(row, filling, spec));
            }
            let batch = match shape {
                StreamShape::Flat => Batch::flat(&streams, 1, Order::Blocks),
                StreamShape::Rectangular { multiple } => {
                    Batch::rectangular(&streams, multiple, Order::Blocks)
                }
            };
            let best = predict(&batch)?;
            let mut best = best.as_slice();
            for row in &mut filling {
                let mut copies = Copies::default();
                row.retain_mut(|unit| {
                    if !copies.next_fits(unit) {
                        return true;
                    }
                    let (own, rest) = best.split_at(unit.open.len().min(best.len()));
                    best = rest;
                    counts.passes += 1;
                    unit.fix(own);
                    unit.open.iter().any(|at| *at < unit.right.len())
                });
            }
        }
    }
    let Counts { tokens, passes, completions } = counts;
    Ok((completions > 0).then(|| SimulatedDecode {
        tokens_per_forward: tokens as f64 / passes.max(1) as f64,
        tokens: tokens as u64,
        passes: passes as u64,
        completions: completions as u64,
        threshold: THRESHOLD,
        sub_block_size: sub,
    }))
}

/// Copies of each block that a pass holds so far; sub-blocks come in the order of their blocks.
#[derive(Default)]
struct Copies {
    block: Option<(usize, usize)>,
    count: usize,
}

impl Copies {
    /// Whether a pass has room for one more copy of the sub-block's block, which is counted then.
    fn next_fits(&mut self, unit: &SubBlock) -> bool {
        let block = Some((unit.document, unit.block));
        if self.block != block {
            (self.block, self.count) = (block, 0);
        }
        self.count += 1;
        self.count <= MOST_COPIES
    }
}

impl SubBlock {
    /// Fixes what is predicted above the threshold, and at least the most probable position; `best`
    /// is one prediction for each open position.
    fn fix(&mut self, best: &[MostProbable]) {
        // the first of equally probable ones
        let mut most = 0;
        for (i, one) in best.iter().enumerate() {
            if one.probability > best[most].probability {
                most = i;
            }
        }
        let mut predictions = best.iter().enumerate();
        let (ids, right) = (&mut self.ids, &self.right);
        self.open.retain(|at| {
            let Some((i, one)) = predictions.next() else { return true };
            let is_fixed = i == most || f64::from(one.probability) > THRESHOLD;
            if is_fixed {
                // nobody knows what is right behind the completion
                ids[*at] = right.get(*at).copied().unwrap_or(one.token as i32);
            }
            !is_fixed
        });
    }
}

/// The sub-blocks of a row's completions that need a pass; counts what decoding does besides.
fn sub_blocks(
    row: &PackedRow,
    spec: &ObjectiveSpec,
    sub: usize,
    counts: &mut Counts,
) -> Vec<SubBlock> {
    let (size, shift) = (spec.bd_size, spec.shift());
    let mut out = Vec::new();
    for (document, (id, start, n)) in spec.documents(row).into_iter().enumerate() {
        if id < 0 {
            continue;
        }
        let token = |j: usize| row.input_ids[start + j];
        let has_label = |j: &usize| row.labels[start + j] != IGNORE;
        let mut next = 1;
        while let Some(first) = (next..n).find(has_label) {
            let end = (first..n).find(|j| !has_label(j)).unwrap_or(n);
            next = end;
            counts.completions += 1;
            counts.tokens += end - first;
            // within a block, the prefill runs together with that block's first pass; without the
            // token shift it does so everywhere, since it predicts nothing
            counts.passes += usize::from(shift == 1 && first >= size && first % size == 0);
            for block in first / size..=(end - 1) / size {
                // with the token shift a prefill or a commit has decided the first token of a
                // block behind others
                let begin = block * size;
                let open = first.max(begin + shift);
                let stop = end.min(begin + size);
                counts.passes += usize::from(stop < end);
                let right: Vec<i32> = (begin..stop).map(token).collect();
                for from in (begin..stop.max(open)).step_by(sub) {
                    let unfilled = open.max(from);
                    if open >= stop || unfilled >= from + sub {
                        continue;
                    }
                    let mut ids = vec![spec.mask_token_id; size];
                    ids[..unfilled - begin].copy_from_slice(&right[..unfilled - begin]);
                    let open = (unfilled - begin..from + sub - begin).collect();
                    out.push(SubBlock { document, block, ids, open, right: right.clone() });
                }
            }
        }
    }
    out
}

/// A row's documents up to the last block that is being filled, and behind each of them the blocks
/// with their open positions as targets.
fn stream(row: &PackedRow, filling: &[SubBlock], spec: &ObjectiveSpec) -> Stream {
    let size = spec.bd_size;
    let documents = spec.documents(row);
    let mut s = Stream::default();
    let mut copies = Copies::default();
    for units in filling.chunk_by(|a, b| a.document == b.document) {
        let Some(&(document, start, _)) = units.first().and_then(|u| documents.get(u.document))
        else {
            continue;
        };
        let clean = s.tokens.len();
        let known = units.iter().map(|unit| unit.block).max().unwrap_or(0);
        let push = |s: &mut Stream, block: usize, ids: &[i32], role: StreamRole| {
            let at = s.tokens.len();
            let prefix = KeyRange::new(clean, block * size);
            s.tiles.push(Tile::new(at, size, prefix, KeyRange::new(at, size)));
            s.tokens.extend(ids.iter().zip(block * size..).map(|(id, position)| Token {
                id: *id,
                position: position as i32,
                document,
                block: block as i32,
                role,
            }));
            at
        };
        for block in 0..known {
            let first = start + block * size;
            push(&mut s, block, &row.input_ids[first..first + size], StreamRole::Clean);
        }
        for unit in units {
            if !copies.next_fits(unit) {
                continue;
            }
            let role = StreamRole::Noised(copies.count as u8 - 1);
            let at = push(&mut s, unit.block, &unit.ids, role);
            // by the token shift a token is predicted by the position before it, and the first
            // token of a block is never open
            s.targets.extend(unit.open.iter().map(|open| Target {
                at: at + open.saturating_sub(spec.shift()),
                id: unit.right.get(*open).copied().unwrap_or(spec.mask_token_id),
            }));
        }
    }
    s
}
