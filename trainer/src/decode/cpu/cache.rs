//! Cached keys and values in panels, so that scores and weighted sums are products like those with
//! weights.
//!
//! Of each layer, row and key/value head: keys as panels of 32 positions whose inputs are the
//! head's dimensions, values as panels of 32 dimensions whose inputs are positions.

use crate::kernels::panels::{Floats, PANEL, Panel, groups};
use crate::model::ModelConfig;

/// Keys and values of all layers; empty before the first pass.
#[derive(Debug, Default)]
pub(crate) struct PanelCache {
    layers: Vec<LayerCache>,
    rows: usize,
}

/// Keys and values of one layer.
#[derive(Debug, Default)]
pub(super) struct LayerCache {
    keys: Vec<Floats>,
    values: Vec<Floats>,
    heads: usize,
    /// Head dimensions in groups.
    dims: usize,
    positions: usize,
}

impl PanelCache {
    /// Makes room for `rows` rows of `positions` tokens and keeps what is there.
    pub(super) fn fit(&mut self, c: &ModelConfig, rows: usize, positions: usize) {
        let positions = positions.next_multiple_of(PANEL);
        self.layers.resize_with(c.num_hidden_layers, LayerCache::default);
        for layer in &mut self.layers {
            layer.fit(c, self.rows.min(rows), rows, positions);
        }
        self.rows = rows;
    }

    pub(super) fn layer(&mut self, i: usize) -> &mut LayerCache {
        &mut self.layers[i]
    }
}

impl LayerCache {
    fn fit(&mut self, c: &ModelConfig, kept: usize, rows: usize, positions: usize) {
        let (heads, dims) = (c.num_key_value_heads, groups(c.head_dim));
        if self.keys.len() == rows * heads * 2 * dims * positions && self.positions == positions {
            return;
        }
        // Of each row and head: keys in one run over all positions, values in one for each group of
        // dimensions.
        for (lines, runs) in [(&mut self.keys, 1), (&mut self.values, dims)] {
            let run = 2 * dims / runs;
            let mut grown = vec![Floats::default(); rows * heads * runs * run * positions];
            let count = run * self.positions.min(positions);
            for i in 0..kept * heads * runs {
                grown[i * run * positions..][..count]
                    .copy_from_slice(&lines[i * run * self.positions..][..count]);
            }
            *lines = grown;
        }
        (self.heads, self.dims, self.positions) = (heads, dims, positions);
    }

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
