//! The forward pass: layers, final norm, head and loss.
//!
//! Residual sums are fused with the norm that follows them, so that a layer begins with its norm
//! already computed by the layer before. Activations are bf16 and stand by rows of tokens.

use crate::arena::Cursor;
use crate::batch::{Packed, Span};
use crate::engine::Engine;
use crate::error::Result;
use crate::program::launch;

/// What a layer keeps for its backward pass; addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LayerPlaces {
    /// Input, `[T, E]`.
    pub x: u64,
    /// After the first norm, `[T, E]`, and the norm's factors, `[T]` fp32.
    pub h1: u64,
    pub rstd1: u64,
    /// Queries, keys, values, `[T, (H + 2 K) D]`; rotated, or raw where q and k have a norm.
    pub qkv: u64,
    /// Normed and rotated queries and keys, `[T, (H + K) D]`, and the norms' factors; 0 without.
    pub qk: u64,
    pub qk_rstd: u64,
    /// Output of attention, `[T, H D]`, and the logarithms of its sums, `[H, T]` fp32.
    pub o: u64,
    pub lse: u64,
    /// Residual after attention, `[T, E]`.
    pub mid: u64,
    /// After the second norm, `[T, E]`, and the norm's factors.
    pub h2: u64,
    pub rstd2: u64,
    /// Gate and up projections, `[T, 2 F]`, and their product, `[T, F]`.
    pub gate_up: u64,
    pub a: u64,
}

/// Addresses of everything a pass uses besides weights and gradients.
#[derive(Debug)]
pub(crate) struct Places {
    /// One per layer, or one that all layers use in turn.
    layers: Vec<LayerPlaces>,
    /// Inputs of the layers and the output of the last, `[T, E]` each.
    inputs: Vec<u64>,
    /// Projections back to the residual stream, `[T, E]`.
    pub y: u64,
    pub gradients: GradientPlaces,
    /// Hidden states at the targets, `[N, E]`: as they are, and after the final norm.
    pub picked: u64,
    pub normed: u64,
    pub rstd: u64,
    /// Some rows of logits, `[chunk, padded vocabulary]`; their gradients in the end.
    pub logits: u64,
    pub chunk: usize,
    /// One loss per target, fp32.
    pub losses: u64,
    pub indices: u64,
    pub rope: u64,
    /// Bytes in all.
    pub bytes: usize,
}

/// Addresses of gradients of activations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GradientPlaces {
    /// Of the residual stream, `[T, E]`.
    pub x: u64,
    /// Of a norm's output, `[T, E]`.
    pub h: u64,
    pub qkv: u64,
    pub o: u64,
    /// Products of attention's output and its gradient, summed by head, `[H, T]` fp32.
    pub delta: u64,
    pub a: u64,
    pub gate_up: u64,
    /// `[N, E]`.
    pub normed: u64,
    pub picked: u64,
    /// Sums that blocks leave for a second kernel, fp32.
    pub parts: u64,
    /// Sums of pieces for the embedding table, `[pieces, E]` fp32.
    pub pieces: u64,
}

impl Places {
    /// Lays everything out from address `start` on. With `keep_all` every layer keeps its own
    /// activations; otherwise only the layers' inputs are kept (in training) or nothing.
    pub(crate) fn new(
        engine: &Engine,
        packed: &Packed,
        start: u64,
        keep_all: bool,
        training: bool,
    ) -> Self {
        let s = &engine.shape;
        let (t, n, layers) = (packed.tokens, packed.targets_len, s.num_hidden_layers);
        let (e, f) = (s.hidden_size, s.intermediate_size);
        let mut c = Cursor::new(start);
        let stored_inputs = if training { layers + 1 } else { 2 };
        let stored: Vec<u64> = (0..stored_inputs).map(|_| c.bf16(t, e)).collect();
        let inputs = (0..=layers).map(|i| stored[i % stored_inputs]).collect();
        let kept = if keep_all { layers } else { 1 };
        let layers = (0..kept)
            .map(|_| LayerPlaces {
                x: 0,
                h1: c.bf16(t, e),
                rstd1: c.fp32(t, 1),
                qkv: c.bf16(t, s.qkv()),
                qk: if s.qk_norm { c.bf16(t, s.q() + s.kv()) } else { 0 },
                qk_rstd: if s.qk_norm {
                    c.fp32(t, s.num_attention_heads + s.num_key_value_heads)
                } else {
                    0
                },
                o: c.bf16(t, s.q()),
                lse: c.fp32(t, s.num_attention_heads),
                mid: c.bf16(t, e),
                h2: c.bf16(t, e),
                rstd2: c.fp32(t, 1),
                gate_up: c.bf16(t, 2 * f),
                a: c.bf16(t, f),
            })
            .collect();
        let y = c.bf16(t, e);
        let (picked, normed, rstd) = (c.bf16(n, e), c.bf16(n, e), c.fp32(n, 1));
        let vocabulary = s.padded_vocab();
        let chunk = (engine.options.logits_bytes / (2 * vocabulary)).clamp(1, n.max(1));
        let logits = c.bf16(chunk, vocabulary);
        let gradients = if training {
            GradientPlaces {
                x: c.bf16(t, e),
                h: y,
                qkv: c.bf16(t, s.qkv()),
                o: c.bf16(t, s.q()),
                delta: c.fp32(t, s.num_attention_heads),
                a: c.bf16(t, f),
                gate_up: c.bf16(t, 2 * f),
                normed: c.bf16(n, e),
                picked: c.bf16(n, e),
                parts: c.fp32(engine.grids.parts(), 1),
                pieces: c.fp32(packed.pieces.len, e),
            }
        } else {
            GradientPlaces::default()
        };
        Places {
            layers,
            inputs,
            y,
            gradients,
            picked,
            normed,
            rstd,
            logits,
            chunk,
            losses: 0,
            indices: 0,
            rope: 0,
            bytes: c.used(),
        }
    }

    /// What layer `i` keeps.
    pub(crate) fn layer(&self, i: usize) -> LayerPlaces {
        LayerPlaces { x: self.inputs[i], ..self.layers[i % self.layers.len()] }
    }

    /// Whether each layer keeps its own activations, so that none has to run again.
    pub(crate) fn keeps_all(&self) -> bool {
        self.layers.len() + 1 == self.inputs.len()
    }

    /// The input of layer `i`, or with the number of layers the output of the last.
    pub(crate) fn input(&self, i: usize) -> u64 {
        self.inputs[i]
    }

    /// Address of an index array.
    pub(crate) fn index(&self, span: Span) -> u64 {
        self.indices + 4 * span.at as u64
    }
}

impl Engine {
    /// From token ids to the output of the last layer.
    pub(crate) fn forward(&self, packed: &Packed, places: &Places) -> Result<()> {
        let (t, e, f) = (packed.tokens, self.shape.hidden_size, self.shape.intermediate_size);
        let ids = places.index(packed.ids);
        launch!(
            self.program,
            "embed_rows",
            self.grids.vectors(t * e),
            ids,
            self.weight16(self.layout.embedding),
            places.input(0),
            t
        )?;
        let layers = self.shape.num_hidden_layers;
        for i in 0..layers {
            let at = places.layer(i);
            if i == 0 {
                self.norm(at.x, self.layout.layers[0].input_norm, at.h1, at.rstd1, t)?;
            }
            self.layer(i, packed, places)?;
            self.product(at.a, self.layout.layers[i].down, places.y, (t, e, f))?;
            let out = places.input(i + 1);
            if i + 1 < layers {
                let next = places.layer(i + 1);
                let norm = self.layout.layers[i + 1].input_norm;
                self.add_norm(at.mid, places.y, out, norm, next.h1, next.rstd1, t)?;
            } else {
                let n = t * e;
                let grid = self.grids.vectors(n);
                launch!(self.program, "add_rows_plain", grid, at.mid, places.y, out, n as i64)?;
            }
        }
        Ok(())
    }

    /// Layer `i` from its normed input `h1` to the input `a` of its last product: all that its
    /// backward pass needs.
    pub(crate) fn layer(&self, i: usize, packed: &Packed, places: &Places) -> Result<()> {
        let (s, l) = (&self.shape, self.layout.layers[i]);
        let (t, e, f) = (packed.tokens, s.hidden_size, s.intermediate_size);
        let at = places.layer(i);
        self.product(at.h1, l.qkv, at.qkv, (t, s.qkv(), e))?;
        self.finish_qkv(i, packed, places)?;
        self.attention(packed, places, i)?;
        self.product(at.o, l.output, places.y, (t, e, s.q()))?;
        self.add_norm(at.x, places.y, at.mid, l.mlp_norm, at.h2, at.rstd2, t)?;
        self.product(at.h2, l.gate_up, at.gate_up, (t, 2 * f, e))?;
        let grid = self.grids.vectors(t * f);
        launch!(self.program, "swiglu", grid, at.gate_up, at.a, t)
    }

    /// `y = x · wᵀ` with the weight at `offset`; sizes are rows, outputs, inputs.
    pub(crate) fn product(
        &self,
        x: u64,
        offset: usize,
        y: u64,
        sizes: (usize, usize, usize),
    ) -> Result<()> {
        let profile = &mut self.program.profile.borrow_mut();
        self.blas.forward(profile, x, self.weight16(offset), y, sizes, sizes.1)
    }

    pub(crate) fn norm(&self, x: u64, weight: usize, h: u64, rstd: u64, rows: usize) -> Result<()> {
        let grid = self.grids.norm(rows);
        launch!(self.program, "rms_norm", grid, x, self.weight(weight), h, rstd, rows)
    }

    /// `sum = x + y`, `h` = the norm of `sum`.
    #[allow(clippy::too_many_arguments, reason = "the operands of one kernel")]
    fn add_norm(
        &self,
        x: u64,
        y: u64,
        sum: u64,
        weight: usize,
        h: u64,
        rstd: u64,
        rows: usize,
    ) -> Result<()> {
        let grid = self.grids.norm(rows);
        let w = self.weight(weight);
        launch!(self.program, "add_rms_norm", grid, x, y, sum, w, h, rstd, rows)
    }

    /// Biases, norms of q and k, and RoPE.
    fn finish_qkv(&self, i: usize, packed: &Packed, places: &Places) -> Result<()> {
        let (s, l, at) = (&self.shape, self.layout.layers[i], places.layer(i));
        let t = packed.tokens;
        let bias = |offset: usize| if s.qkv_bias { self.weight(l.qkv_bias + offset) } else { 0 };
        let norm = |offset: usize| if s.qk_norm { self.weight(l.qk_norm + offset) } else { 0 };
        launch!(
            self.program,
            "qkv_forward",
            self.grids.qkv(t),
            at.qkv,
            bias(0),
            bias(s.q()),
            bias(s.q() + s.kv()),
            norm(0),
            norm(s.head_dim),
            places.index(packed.positions),
            places.rope,
            at.qk,
            at.qk_rstd,
            t
        )
    }

    /// Addresses and row strides of q, k and v.
    pub(crate) fn heads(&self, places: &Places, i: usize) -> ([u64; 3], [usize; 3]) {
        let (s, at) = (&self.shape, places.layer(i));
        let (q, kv, width) = (s.q() as u64, s.kv() as u64, s.qkv());
        let v = at.qkv + 2 * (q + kv);
        if s.qk_norm {
            let qk = s.q() + s.kv();
            ([at.qk, at.qk + 2 * q, v], [qk, qk, width])
        } else {
            ([at.qkv, at.qkv + 2 * q, v], [width; 3])
        }
    }

    fn attention(&self, packed: &Packed, places: &Places, i: usize) -> Result<()> {
        let ([q, k, v], [q_stride, k_stride, v_stride]) = self.heads(places, i);
        let at = places.layer(i);
        launch!(
            self.program,
            "attention_forward",
            self.grids.attention(packed.item_count),
            q,
            k,
            v,
            at.o,
            at.lse,
            places.index(packed.items),
            q_stride,
            k_stride,
            v_stride,
            packed.tokens
        )
    }

    /// Losses of all targets, `places.chunk` of them at a time; with a scale also the gradients up
    /// to the output of the last layer, which end in `places.gradients.x`.
    pub(crate) fn loss(&self, packed: &Packed, places: &Places, scale: Option<f32>) -> Result<()> {
        let s = &self.shape;
        let (n, e, v) = (packed.targets_len, s.hidden_size, s.padded_vocab());
        self.pick(packed, places)?;
        for first in (0..n).step_by(places.chunk) {
            let rows = places.chunk.min(n - first);
            let states = places.normed + 2 * (first * e) as u64;
            self.logits_of(states, places, rows)?;
            let grid = self.grids.cross_entropy(rows, scale.is_some());
            launch!(
                self.program,
                "cross_entropy",
                grid,
                places.logits,
                places.index(packed.targets) + 4 * first as u64,
                places.losses + 4 * first as u64,
                scale.unwrap_or(0.0),
                rows,
                // the bytes of shared memory, or 0 where no gradient is wanted
                grid.shared
            )?;
            if scale.is_some() {
                let profile = &mut self.program.profile.borrow_mut();
                let (head, d_states) =
                    (self.layout.head, places.gradients.normed + 2 * (first * e) as u64);
                let sizes = (rows, v, e);
                let w = self.weight16(head);
                self.blas.input_gradient(profile, places.logits, w, d_states, sizes, v)?;
                let dw = self.gradient(head)?;
                self.blas.weight_gradient(profile, states, places.logits, dw, sizes, v, true)?;
            }
        }
        Ok(())
    }

    /// Hidden states at the targets, and their final norm.
    fn pick(&self, packed: &Packed, places: &Places) -> Result<()> {
        let (n, e) = (packed.targets_len, self.shape.hidden_size);
        let out = places.input(self.shape.num_hidden_layers);
        let at = places.index(packed.predicted_at);
        let grid = self.grids.vectors(n * e);
        launch!(self.program, "gather_rows", grid, out, at, places.picked, n)?;
        self.norm(places.picked, self.layout.final_norm, places.normed, places.rstd, n)
    }

    /// Logits of `rows` states, into `places.logits`.
    fn logits_of(&self, states: u64, places: &Places, rows: usize) -> Result<()> {
        let sizes = (rows, self.shape.padded_vocab(), self.shape.hidden_size);
        self.product(states, self.layout.head, places.logits, sizes)
    }

    /// Logits of every target position, on the host.
    pub(crate) fn read_logits(&self, packed: &Packed, places: &Places) -> Result<Vec<f32>> {
        let (n, e) = (packed.targets_len, self.shape.hidden_size);
        let (v, stride) = (self.shape.vocab_size, self.shape.padded_vocab());
        self.pick(packed, places)?;
        let mut all = Vec::with_capacity(n * v);
        for first in (0..n).step_by(places.chunk) {
            let rows = places.chunk.min(n - first);
            self.logits_of(places.normed + 2 * (first * e) as u64, places, rows)?;
            let mut values = vec![0u16; rows * stride];
            self.device.download(places.logits, &mut values)?;
            for row in values.chunks(stride) {
                all.extend(row[..v].iter().map(|bits| half::bf16::from_bits(*bits).to_f32()));
            }
        }
        Ok(all)
    }
}
