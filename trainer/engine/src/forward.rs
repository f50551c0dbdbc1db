//! The forward pass: layers, final norm, head and loss.
//!
//! Residual sums are fused with the norm that follows them, so that a layer begins with its norm
//! already computed by the layer before. Activations are bf16 and stand by rows of tokens.

use crate::batch::Packed;
use crate::beside::Beside;
use crate::error::Result;
use crate::model::Model;
use crate::places::{LayerPlaces, Places};
use crate::program::launch;

/// Which time a layer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    /// Again in the backward pass, for the tokens that this goes through.
    Again,
}

impl Model {
    /// From token ids to the output of the last layer. `cache` says where the keys and values of a
    /// layer are cached; without a cache they are those of the batch.
    pub(crate) fn forward(
        &self,
        packed: &Packed,
        places: &Places,
        cache: impl Fn(usize) -> Option<(u64, u64)>,
    ) -> Result<()> {
        self.ready()?;
        let (t, e) = (packed.tokens, self.shape.hidden_size);
        let ids = places.index(packed.ids);
        launch!(
            self.program,
            "embed_rows",
            self.grids.vectors(t * e),
            ids,
            self.matrix(self.layout.embedding),
            places.input(0),
            t
        )?;
        self.embed_mask_row(packed, places)?;
        let layers = self.shape.num_hidden_layers;
        for i in 0..layers {
            let at = places.layer(i);
            if i == 0 {
                self.norm(at.x, self.layout.layers[0].input_norm, at.h1, at.rstd1, t)?;
            }
            self.layer(i, packed, places, cache(i), Pass::Forward)?;
            self.down(i, packed, places)?;
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

    /// Layer `i` from its normed input `h1` to the input of its last product: all that its
    /// backward pass needs.
    pub(crate) fn layer(
        &self,
        i: usize,
        packed: &Packed,
        places: &Places,
        cache: Option<(u64, u64)>,
        pass: Pass,
    ) -> Result<()> {
        let (s, l) = (&self.shape, self.layout.layers[i]);
        let (t, e, f) = (packed.tokens, s.hidden_size, s.intermediate_size);
        let at = places.layer(i);
        let h1 = self.quantize((at.h1, at.h1), places, t, e)?;
        self.product(h1, l.qkv, at.qkv, (t, s.qkv(), e))?;
        self.adapters(i, Beside::Qkv, (at.h1, at.qkv), packed, &at)?;
        self.finish_qkv(i, packed, places)?;
        if let Some(cache) = cache {
            self.store(packed, places, i, cache)?;
        }
        // behind attention the backward pass needs the tokens that it goes through
        let t = if pass == Pass::Again { packed.adapted } else { t };
        self.attention(packed, places, i, cache, pass)?;
        if s.sub_norms {
            self.norm(at.o, l.output_norm, at.o_in, at.rstd_o, t)?;
        }
        let o = if s.sub_norms { at.o_in } else { at.o };
        let o = self.quantize((o, at.o_in), places, t, s.q())?;
        self.product(o, l.output, places.y, (t, e, s.q()))?;
        self.adapters(i, Beside::Output, (at.o_in, places.y), packed, &at)?;
        self.add_norm(at.x, places.y, at.mid, l.mlp_norm, at.h2, at.rstd2, t)?;
        let h2 = self.quantize((at.h2, at.h2), places, t, e)?;
        self.product(h2, l.gate_up, at.gate_up, (t, 2 * f, e))?;
        self.adapters(i, Beside::GateUp, (at.h2, at.gate_up), packed, &at)?;
        let grid = self.grids.vectors(t * f);
        launch!(self.program, "swiglu", grid, at.gate_up, at.a, t)?;
        if let Some(wide) = &self.wide {
            let (grid, w) = (wide.grids.norm(t), self.weight(l.down_norm));
            launch!(wide.program, "rms_norm", grid, at.a, w, at.a_in, at.rstd_a, t)?;
        }
        if self.adapters.is_some() {
            return self.adapter_inner(i, Beside::Down, at.a_in, packed.adapted, &at);
        }
        let a = if s.sub_norms { at.a_in } else { at.a };
        self.quantize((a, at.a_in), places, t, f).map(|_| ())
    }

    /// The last product of layer `i`, into `places.y`.
    fn down(&self, i: usize, packed: &Packed, places: &Places) -> Result<()> {
        let (at, e, f) = (places.layer(i), self.shape.hidden_size, self.shape.intermediate_size);
        let t = packed.tokens;
        // beside adapters the input is not rounded so far
        let a = match self.adapters {
            Some(_) => self.quantize((at.a_in, at.a_in), places, t, f)?,
            None => at.a_in,
        };
        self.product(a, self.layout.layers[i].down, places.y, (t, e, f))?;
        self.adapter_outer(i, Beside::Down, places.y, packed.adapted, &at)
    }

    /// Adds what the adapters of one input make of `x` to `y`.
    fn adapters(
        &self,
        i: usize,
        which: Beside,
        (x, y): (u64, u64),
        packed: &Packed,
        at: &LayerPlaces,
    ) -> Result<()> {
        self.adapter_inner(i, which, x, packed.adapted, at)?;
        self.adapter_outer(i, which, y, packed.adapted, at)
    }

    /// Where a matrix product reads its input `x`: where the layers are BitLinear, rounded to int8
    /// per token, in `kept`, or beside adapters, which read it as it is, in a place of its own.
    fn quantize(
        &self,
        (x, kept): (u64, u64),
        places: &Places,
        rows: usize,
        width: usize,
    ) -> Result<u64> {
        if !self.shape.bit_linear {
            return Ok(kept);
        }
        let out = if self.adapters.is_some() { places.rounded } else { kept };
        let (grid, lambda) = (self.grids.quantize(rows), self.quantization.lambda.get());
        launch!(self.program, "quantize_rows", grid, x, out, width, lambda)?;
        Ok(out)
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
        self.blas.forward(profile, x, self.matrix(offset), y, sizes, sizes.1)
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
        let size = self.element() as u64;
        let v = at.qkv + size * (q + kv);
        if s.qk_norm {
            let qk = s.q() + s.kv();
            ([at.qk, at.qk + size * q, v], [qk, qk, width])
        } else {
            ([at.qkv, at.qkv + size * q, v], [width; 3])
        }
    }

    /// Copies keys and values of layer `i` into its cache.
    fn store(
        &self,
        packed: &Packed,
        places: &Places,
        i: usize,
        (keys, values): (u64, u64),
    ) -> Result<()> {
        let ([_, k, v], [_, k_stride, v_stride]) = self.heads(places, i);
        let tokens = packed.tokens;
        launch!(
            self.program,
            "store_rows",
            self.grids.vectors(tokens * self.shape.kv()),
            k,
            v,
            k_stride,
            v_stride,
            places.index(packed.slots),
            keys,
            values,
            tokens
        )
    }

    fn attention(
        &self,
        packed: &Packed,
        places: &Places,
        i: usize,
        cache: Option<(u64, u64)>,
        pass: Pass,
    ) -> Result<()> {
        let ([q, mut k, mut v], [q_stride, mut k_stride, mut v_stride]) = self.heads(places, i);
        if let Some((keys, values)) = cache {
            (k, v) = (keys, values);
            (k_stride, v_stride) = (self.shape.kv(), self.shape.kv());
        }
        let at = places.layer(i);
        let (items, count) = match pass {
            Pass::Forward => (packed.items, packed.item_count),
            Pass::Again => (packed.back_items, packed.back_item_count),
        };
        launch!(
            self.program,
            "attention_forward",
            self.grids.attention(count),
            q,
            k,
            v,
            at.o,
            at.lse,
            places.index(items),
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
            let states = places.normed + (self.element() * first * e) as u64;
            self.logits_of(states, places, rows)?;
            match packed.is_taught() {
                true => self.judge(packed, places, first..first + rows, scale)?,
                false => {
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
                }
            }
            if scale.is_some() {
                let profile = &mut self.program.profile.borrow_mut();
                let head = self.layout.head;
                let d_states = places.gradients.normed + (self.element() * first * e) as u64;
                let sizes = (rows, v, e);
                let w = self.matrix(head);
                self.blas.input_gradient(profile, places.logits, w, d_states, sizes, v)?;
                match &self.adapters {
                    Some(_) => self.head_row_gradient(profile, states, places, rows)?,
                    None => {
                        let (dw, d_logits) = (self.gradient(head)?, places.logits);
                        self.blas.weight_gradient(profile, states, d_logits, dw, sizes, v, true)?;
                    }
                }
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

    /// Logits of `rows` states in fp32, into `logits`.
    pub(crate) fn fp32_logits(&self, states: u64, logits: u64, rows: usize) -> Result<()> {
        let profile = &mut self.program.profile.borrow_mut();
        let sizes = (rows, self.shape.padded_vocab(), self.shape.hidden_size);
        self.blas.forward_fp32(profile, states, self.matrix(self.layout.head), logits, sizes)
    }

    /// Logits of every target position, on the host.
    pub(crate) fn read_logits(&self, packed: &Packed, places: &Places) -> Result<Vec<f32>> {
        let (n, e) = (packed.targets_len, self.shape.hidden_size);
        let (v, stride) = (self.shape.vocab_size, self.shape.padded_vocab());
        self.pick(packed, places)?;
        let mut all = Vec::with_capacity(n * v);
        for first in (0..n).step_by(places.chunk) {
            let rows = places.chunk.min(n - first);
            let states = places.normed + (self.element() * first * e) as u64;
            self.logits_of(states, places, rows)?;
            let mut bytes = vec![0u8; rows * stride * self.element()];
            self.device.download(places.logits, &mut bytes)?;
            for row in bytes.chunks(stride * self.element()) {
                all.extend(row.chunks(self.element()).take(v).map(|b| match *b {
                    [a, b] => half::bf16::from_le_bytes([a, b]).to_f32(),
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    _ => f32::NAN,
                }));
            }
        }
        Ok(all)
    }
}
