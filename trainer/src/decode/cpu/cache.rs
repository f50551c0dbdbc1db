//! Cached keys and values in panels, so that scores and weighted sums are products like those with
//! weights.
//!
//! Of each layer, row and key/value head: keys as panels of 32 positions whose inputs are the
//! head's dimensions, values as panels of 32 dimensions whose inputs are positions.

use crate::kernels::panels::{Floats, PANEL, Panel};
use crate::model::ModelConfig;

use super::groups;

/// Keys and values of all layers.
pub(super) struct Cache {
    layers: Vec<LayerCache>,
    heads: usize,
    /// Head dimensions in groups.
    dims: usize,
    rows: usize,
    positions: usize,
}

/// Keys and values of one layer.
#[derive(Default)]
pub(super) struct LayerCache {
    keys: Vec<Floats>,
    values: Vec<Floats>,
    heads: usize,
    dims: usize,
    positions: usize,
}

impl Cache {
    /// A cache without rows.
    pub(super) fn new(c: &ModelConfig) -> Self {
        let layers = (0..c.num_hidden_layers).map(|_| LayerCache::default()).collect();
        let (heads, dims) = (c.num_key_value_heads, groups(c.head_dim));
        Cache { layers, heads, dims, rows: 0, positions: 0 }
    }

    /// Makes room for `rows` rows of `positions` tokens; all is zero, or what was there is kept.
    pub(super) fn open(&mut self, rows: usize, positions: usize, keep: bool) {
        let positions = positions.next_multiple_of(PANEL);
        let kept = if keep { rows.min(self.rows) * self.heads } else { 0 };
        let (old, new) = (self.positions, positions);
        // lines of the panels of one row and head, in runs of as many positions
        let line = 2 * PANEL * self.dims;
        for layer in &mut self.layers {
            let grow = |lines: &mut Vec<Floats>, runs: usize| {
                let run = line / PANEL / runs;
                let mut grown = vec![Floats::default(); rows * self.heads * runs * run * new];
                for i in 0..kept * runs {
                    let count = run * old.min(new);
                    grown[i * run * new..][..count]
                        .copy_from_slice(&lines[i * run * old..][..count]);
                }
                *lines = grown;
            };
            grow(&mut layer.keys, 1);
            grow(&mut layer.values, self.dims);
            (layer.heads, layer.dims, layer.positions) = (self.heads, self.dims, new);
        }
        (self.rows, self.positions) = (rows, positions);
    }

    pub(super) fn layer(&mut self, i: usize) -> &mut LayerCache {
        &mut self.layers[i]
    }
}

impl LayerCache {
    fn lines(&self) -> usize {
        2 * self.dims * self.positions
    }

    /// Sets key and value of a position.
    pub(super) fn write(&mut self, row: usize, head: usize, at: usize, key: &[f32], value: &[f32]) {
        let base = (row * self.heads + head) * self.lines();
        let (panel, half, lane) = (at / PANEL, at % PANEL / 16, at % 16);
        for (d, (key, value)) in key.iter().zip(value).enumerate() {
            let line = base + (panel * self.dims * PANEL + d) * 2 + half;
            self.keys[line].0[lane] = *key;
            let line = base + (d / PANEL * self.positions + at) * 2 + d % PANEL / 16;
            self.values[line].0[d % 16] = *value;
        }
    }

    /// The keys of 32 positions.
    pub(super) fn keys(&self, row: usize, head: usize, panel: usize) -> Panel<'_> {
        let len = 2 * self.dims * PANEL;
        let first = (row * self.heads + head) * self.lines() + panel * len;
        Panel::Fp32(&self.keys[first..first + len])
    }

    /// Thirty-two dimensions of the values of the first `groups` times 32 positions.
    pub(super) fn values(&self, row: usize, head: usize, dims: usize, groups: usize) -> Panel<'_> {
        let first = (row * self.heads + head) * self.lines() + dims * 2 * self.positions;
        Panel::Fp32(&self.values[first..first + groups * PANEL * 2])
    }
}
