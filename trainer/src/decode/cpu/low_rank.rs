//! Adapters that act on mask tokens alone, beside the packed weights of a map: `y += scale · B (A
//! x)` for the masks among a pass's rows. All other rows are left as they are, bit for bit.

use std::ops::Range;

use crate::compute::WeightFormat;
use crate::kernels::panels::{Matrix, PANEL, Row, groups, product};
use crate::kernels::team::Team;

use super::pointwise::{gather, scatter};

/// Rows that are multiplied at once.
const TOGETHER: usize = 8;

/// Panels times masks times inputs of a product that is not worth dividing among threads.
const SMALL: usize = 1 << 16;

/// The adapters of maps over the same input, which are packed as one.
pub(super) struct LowRank {
    /// The A of every map one below the other.
    down: Matrix,
    /// For the outputs of the packed map: B in the columns of its own A, zeros in the others.
    up: Matrix,
    /// Groups of columns of `up` that are not zero, for each panel of outputs.
    used: Vec<Range<usize>>,
    scale: f32,
}

/// A and B `[out, r]` of one map, row by row.
pub(super) struct Factors {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

impl LowRank {
    /// Packs the adapters of maps over `inputs` inputs, `None` where a map has none. `rows` are the
    /// packed outputs in order: the map, and which of its outputs; an output behind the last of its
    /// map is padding.
    pub(super) fn pack(
        maps: &[Option<Factors>],
        inputs: usize,
        rank: usize,
        rows: &[(usize, usize)],
        scale: f64,
    ) -> Self {
        let width = maps.len() * rank;
        let mut down = vec![0f32; width * inputs];
        for (map, factors) in maps.iter().enumerate() {
            let Some(Factors { a, .. }) = factors else { continue };
            down[map * rank * inputs..][..a.len()].copy_from_slice(a);
        }
        let mut up = vec![0f32; rows.len() * width];
        for ((map, output), line) in rows.iter().zip(up.chunks_exact_mut(width)) {
            let Some(Factors { b, .. }) = &maps[*map] else { continue };
            if let Some(b) = b.get(output * rank..(output + 1) * rank) {
                line[map * rank..][..rank].copy_from_slice(b);
            }
        }
        let of_panel = |rows: &[(usize, usize)]| {
            let with = rows.iter().map(|(map, _)| *map).filter(|map| maps[*map].is_some());
            let first = with.clone().min().unwrap_or(0);
            let end = with.max().map_or(first, |last| last + 1);
            first * rank / PANEL..groups(end * rank)
        };
        LowRank {
            down: Matrix::pack(&down, inputs, WeightFormat::Fp32),
            up: Matrix::pack(&up, width, WeightFormat::Fp32),
            used: rows.chunks(PANEL).map(of_panel).collect(),
            scale: scale as f32,
        }
    }
}

/// The mask rows of a pass, and `scale · A x` of them for the present map.
#[derive(Default)]
pub(super) struct Masks {
    /// Rows of the pass, rising.
    pub rows: Vec<usize>,
    chosen: Vec<f32>,
    head: Vec<f32>,
    low: Vec<f32>,
}

impl Masks {
    /// Computes `scale · A x` of the masks among `rows` rows of `x`.
    pub(super) fn read(
        &mut self,
        team: &Team<'_>,
        adapter: Option<&LowRank>,
        x: &[f32],
        rows: usize,
    ) {
        let Some(adapter) = adapter else { return };
        let (count, width) = (self.rows.len(), x.len() / rows.max(1));
        if count == 0 {
            return;
        }
        self.chosen.resize(count * width, 0.0);
        self.head.resize(width, 0.0);
        for (i, row) in self.rows.iter().enumerate() {
            gather(x, rows, *row, 0, &mut self.head);
            scatter(&mut self.chosen, count, i, 0, &self.head);
        }
        let panels = adapter.down.panels();
        self.low.resize(panels * count * PANEL, 0.0);
        let chosen = &self.chosen;
        let run = |panel: usize, low: &mut [f32]| {
            product(adapter.down.panel(panel), chosen, count, 0, low.as_chunks_mut().0);
            low.iter_mut().for_each(|v| *v *= adapter.scale);
        };
        match panels * count * width < SMALL {
            true => self.low.chunks_mut(count * PANEL).enumerate().for_each(|(i, low)| run(i, low)),
            false => team.for_chunks(&mut self.low, count * PANEL, |_, i, low| run(i, low)),
        }
    }

    /// Adds the adapter's part of a panel to `out`, rows of the pass from `first` on.
    pub(super) fn add(
        &self,
        adapter: Option<&LowRank>,
        panel: usize,
        first: usize,
        out: &mut [Row],
    ) {
        let Some(adapter) = adapter else { return };
        let from = self.rows.partition_point(|row| *row < first);
        let to = self.rows.partition_point(|row| *row < first + out.len());
        let used = adapter.used.get(panel).cloned().unwrap_or_default();
        if from == to || used.is_empty() {
            return;
        }
        let count = self.rows.len();
        let low = &self.low[used.start * count * PANEL..];
        for at in (from..to).step_by(TOGETHER) {
            let mut new = [[0f32; PANEL]; TOGETHER];
            let new = &mut new[..TOGETHER.min(to - at)];
            product(adapter.up.panel(panel).part(used.clone()), low, count, at, new);
            for (row, new) in self.rows[at..].iter().zip(new.iter()) {
                out[row - first].iter_mut().zip(new).for_each(|(out, new)| *out += new);
            }
        }
    }
}
