//! One decoder layer: norms, attention with the cache, gated MLP.

use crate::decode::placed::Placed;
use crate::kernels::gate;
use crate::kernels::panels::{PANEL, Row, groups, product};
use crate::kernels::team::Team;

use super::attention::{Attention, Inputs, Task};
use super::cache::LayerCache;
use super::low_rank::Masks;
use super::pointwise::{self, Rotary, rms_norm, round_to_int8};
use super::weights::{Layer, Linear};

/// Rows that go through all panels of a task together: their inputs stay in the first cache, the
/// weights of the task in the second.
pub(super) const TOGETHER: usize = 8;
/// Tasks of a product for each thread: enough to even out what other programs take.
const TASKS: usize = 12;

/// Activations of a pass, used again by the next.
#[derive(Default)]
pub(super) struct Buffers {
    /// T of the present pass.
    pub rows: usize,
    /// Hidden states.
    pub x: Vec<f32>,
    /// Hidden states after a norm.
    pub normed: Vec<f32>,
    /// Queries, keys and values.
    pub qkv: Vec<f32>,
    /// Attention's results by task.
    pub attended: Vec<f32>,
    /// Attention's results by token.
    pub mixed: Vec<f32>,
    /// Inside the MLP.
    pub gated: Vec<f32>,
    /// Where the tokens stand.
    pub tokens: Vec<Placed>,
    pub masks: Masks,
}

/// What all layers of a pass share.
pub(super) struct Pass<'a> {
    pub team: &'a Team<'a>,
    pub eps: f32,
    pub attention: &'a Attention,
    pub rotary: &'a Rotary,
    pub tasks: &'a [Task],
}

impl Pass<'_> {
    /// Runs a layer on the hidden states in `b`.
    pub(super) fn run(&self, layer: &Layer, cache: &mut LayerCache, b: &mut Buffers) {
        let rows = b.rows;
        let attended = self.attention.heads * self.attention.dim;
        b.normed.resize(b.x.len(), 0.0);
        let hidden = layer.o.matrix.outputs();
        rms_norm(&b.x, &layer.input_norm, rows, hidden, self.eps, &mut b.normed);
        self.project(&layer.qkv, &mut b.normed, rows, &mut b.masks, &mut b.qkv);
        self.remember(layer, cache, b);
        let inputs = Inputs {
            qkv: &b.qkv,
            rows,
            tokens: &b.tokens,
            rotary: self.rotary,
            cache,
            eps: self.eps,
        };
        let attention = self.attention;
        attention.run(self.team, layer, &inputs, self.tasks, &mut b.attended, &mut b.mixed);
        if let Some(weight) = &layer.attention_norm {
            norm_in_place(&mut b.mixed, weight, rows, attended, self.eps, &mut b.qkv);
        }
        self.add(&layer.o, &mut b.mixed, rows, &mut b.masks, &mut b.x);
        rms_norm(&b.x, &layer.mlp_norm, rows, hidden, self.eps, &mut b.normed);
        self.gate(layer, &mut b.normed, rows, &mut b.masks, &mut b.gated);
        if let Some(weight) = &layer.down_norm {
            norm_in_place(&mut b.gated, weight, rows, layer.inner, self.eps, &mut b.qkv);
        }
        self.add(&layer.down, &mut b.gated, rows, &mut b.masks, &mut b.x);
    }

    /// Keys and values of the new tokens go into the cache.
    fn remember(&self, layer: &Layer, cache: &mut LayerCache, b: &Buffers) {
        let Attention { heads, kv_heads, dim, .. } = *self.attention;
        let (mut key, mut value) = (vec![0f32; dim], vec![0f32; dim]);
        for (token, placed) in b.tokens.iter().enumerate() {
            for head in 0..kv_heads {
                pointwise::gather(&b.qkv, b.rows, token, (heads + head) * dim, &mut key);
                let first = (heads + kv_heads + head) * dim;
                pointwise::gather(&b.qkv, b.rows, token, first, &mut value);
                if let Some(weight) = &layer.k_norm {
                    pointwise::norm_head(&mut key, weight, self.eps);
                }
                self.rotary.rotate(placed.position, &mut key);
                cache.write(placed.row, head, placed.slot, &key, &value);
            }
        }
    }

    /// Values of the chunks that a product's tasks write, `panels` panels in all.
    fn chunk(&self, panels: usize, rows: usize) -> usize {
        panels.div_ceil(TASKS * self.team.threads()).max(1) * rows * PANEL
    }

    /// `out = x Wᵀ + b`; `x` is rounded in place where the map is BitLinear.
    fn project(
        &self,
        map: &Linear,
        x: &mut [f32],
        rows: usize,
        masks: &mut Masks,
        out: &mut Vec<f32>,
    ) {
        masks.read(self.team, map.adapter.as_ref(), x, rows);
        if map.rounds_input {
            round_to_int8(x, rows);
        }
        let (x, masks, panels) = (&*x, &*masks, map.matrix.panels());
        out.resize(panels * rows * PANEL, 0.0);
        let chunk = self.chunk(panels, rows);
        self.team.for_chunks(out, chunk, |_, task, out| {
            let first = task * (chunk / (rows * PANEL));
            for_blocks(as_rows(out), rows, |p, row, out| {
                product(map.matrix.panel(first + p), x, rows, row, out);
                add_bias(map, first + p, out);
                masks.add(map.adapter.as_ref(), first + p, row, out);
            });
        });
    }

    /// `sum += x Wᵀ + b`.
    fn add(&self, map: &Linear, x: &mut [f32], rows: usize, masks: &mut Masks, sum: &mut [f32]) {
        masks.read(self.team, map.adapter.as_ref(), x, rows);
        if map.rounds_input {
            round_to_int8(x, rows);
        }
        let (x, masks) = (&*x, &*masks);
        let chunk = self.chunk(map.matrix.panels(), rows);
        self.team.for_chunks(sum, chunk, |_, task, sum| {
            let first = task * (chunk / (rows * PANEL));
            for_blocks(as_rows(sum), rows, |p, row, sum| {
                let mut new = [[0f32; PANEL]; TOGETHER];
                let new = &mut new[..sum.len()];
                product(map.matrix.panel(first + p), x, rows, row, new);
                add_bias(map, first + p, new);
                masks.add(map.adapter.as_ref(), first + p, row, new);
                let each = sum.as_flattened_mut().iter_mut().zip(new.as_flattened());
                each.for_each(|(sum, new)| *sum += new);
            });
        });
    }

    /// `out = activation(gate x) · (up x)`.
    fn gate(
        &self,
        layer: &Layer,
        x: &mut [f32],
        rows: usize,
        masks: &mut Masks,
        out: &mut Vec<f32>,
    ) {
        let map = &layer.gate_up;
        masks.read(self.team, map.adapter.as_ref(), x, rows);
        if map.rounds_input {
            round_to_int8(x, rows);
        }
        let (x, masks, panels) = (&*x, &*masks, groups(layer.inner));
        out.resize(panels * rows * PANEL, 0.0);
        let chunk = self.chunk(panels, rows);
        self.team.for_chunks(out, chunk, |_, task, out| {
            let first = task * (chunk / (rows * PANEL));
            for_blocks(as_rows(out), rows, |p, row, out| {
                let mut both = [[[0f32; PANEL]; TOGETHER]; 2];
                let [gate, up] = both.each_mut().map(|new| &mut new[..out.len()]);
                for (half, new) in [&mut *gate, &mut *up].into_iter().enumerate() {
                    let panel = 2 * (first + p) + half;
                    product(map.matrix.panel(panel), x, rows, row, new);
                    add_bias(map, panel, new);
                    masks.add(map.adapter.as_ref(), panel, row, new);
                }
                gate::slice(
                    out.as_flattened_mut(),
                    gate.as_flattened(),
                    up.as_flattened(),
                    layer.activation,
                );
            });
        });
    }
}

/// Calls `block(panel, first row, rows)` for all panels of a task and at most [`TOGETHER`] of their
/// `rows` rows at a time; the same rows of all panels come after each other.
fn for_blocks(out: &mut [Row], rows: usize, mut block: impl FnMut(usize, usize, &mut [Row])) {
    for first in (0..rows).step_by(TOGETHER) {
        for (panel, out) in out.chunks_exact_mut(rows).enumerate() {
            block(panel, first, &mut out[first..rows.min(first + TOGETHER)]);
        }
    }
}

fn norm_in_place(
    x: &mut Vec<f32>,
    weight: &[f32],
    rows: usize,
    width: usize,
    eps: f32,
    spare: &mut Vec<f32>,
) {
    spare.resize(x.len(), 0.0);
    rms_norm(x, weight, rows, width, eps, spare);
    std::mem::swap(x, spare);
}

fn add_bias(map: &Linear, panel: usize, out: &mut [Row]) {
    let Some(bias) = &map.bias else { return };
    let bias = &bias[panel * PANEL..(panel + 1) * PANEL];
    for out in out {
        out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
    }
}

fn as_rows(values: &mut [f32]) -> &mut [Row] {
    values.as_chunks_mut().0
}
