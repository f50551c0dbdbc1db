//! The backward pass, from the gradients of the predicted positions to those of all parameters, or
//! of the adapters where the model's own are frozen. It goes through `packed.adapted` tokens, the
//! first ones: all, or those that gated adapters act on.

use crate::batch::Packed;
use crate::beside::Beside;
use crate::error::Result;
use crate::forward::Pass;
use crate::model::Model;
use crate::places::{LayerPlaces, Places};
use crate::program::launch;

impl Model {
    /// Adds the gradients of every parameter but the head's, whose were added with the loss.
    pub(crate) fn backward(&self, packed: &Packed, places: &Places) -> Result<()> {
        let (t, n, e) = (packed.adapted, packed.targets_len, self.shape.hidden_size);
        let g = places.gradients;
        // final norm, then from picked rows back to all tokens
        let final_norm = self.layout.final_norm;
        self.norm_backward(
            (g.normed, places.picked, places.rstd, 0, g.picked),
            final_norm,
            n,
            places,
        )?;
        launch!(
            self.program,
            "scatter_rows",
            self.grids.vectors(t * e),
            g.picked,
            places.index(packed.pick_start),
            places.index(packed.picks),
            g.x,
            t
        )?;
        for i in (0..self.shape.num_hidden_layers).rev() {
            let at = places.layer(i);
            if !places.keeps_all() {
                // all tokens: those that are gone through see keys of others
                let all = packed.tokens;
                self.norm(at.x, self.layout.layers[i].input_norm, at.h1, at.rstd1, all)?;
                self.layer(i, packed, places, None, Pass::Again)?;
            }
            self.mlp_backward(i, t, &at, places)?;
            self.attention_backward(i, packed, &at, places)?;
        }
        self.embedding_backward(packed, places)
    }

    /// Through the MLP and its norm; `g.x` goes from the layer's output to the residual before.
    fn mlp_backward(&self, i: usize, t: usize, at: &LayerPlaces, places: &Places) -> Result<()> {
        let (s, l, g) = (&self.shape, self.layout.layers[i], places.gradients);
        let (e, f) = (s.hidden_size, s.intermediate_size);
        self.product_backward(g.x, at.a_in, l.down, g.a, (t, e, f))?;
        self.adapter_backward(i, Beside::Down, (g.x, at.a_in, g.a), t, at, places)?;
        if let Some(wide) = &self.wide {
            let grid = wide.grids.norm_backward();
            let w = self.weight(l.down_norm);
            launch!(
                wide.program,
                "rms_norm_backward",
                grid,
                g.a,
                at.a,
                w,
                at.rstd_a,
                0u64,
                g.a,
                g.parts,
                t
            )?;
            self.reduce(places, grid.blocks.0, l.down_norm, f)?;
        }
        let grid = self.grids.vectors(t * f);
        launch!(self.program, "swiglu_backward", grid, at.gate_up, g.a, g.gate_up, t)?;
        self.product_backward(g.gate_up, at.h2, l.gate_up, g.h, (t, 2 * f, e))?;
        self.adapter_backward(i, Beside::GateUp, (g.gate_up, at.h2, g.h), t, at, places)?;
        self.norm_backward((g.h, at.mid, at.rstd2, g.x, g.x), l.mlp_norm, t, places)
    }

    /// Through attention and its norm; `g.x` goes on to the layer's input.
    fn attention_backward(
        &self,
        i: usize,
        packed: &Packed,
        at: &LayerPlaces,
        places: &Places,
    ) -> Result<()> {
        let (s, l, g) = (&self.shape, self.layout.layers[i], places.gradients);
        let (t, e) = (packed.adapted, s.hidden_size);
        self.product_backward(g.x, at.o_in, l.output, g.o, (t, e, s.q()))?;
        self.adapter_backward(i, Beside::Output, (g.x, at.o_in, g.o), t, at, places)?;
        if s.sub_norms {
            self.norm_backward((g.o, at.o, at.rstd_o, 0, g.o), l.output_norm, t, places)?;
        }
        self.scores_backward(i, packed, at, places)?;
        let norm = |offset: usize| if s.qk_norm { self.weight(l.qk_norm + offset) } else { 0 };
        let parts = if s.qk_norm { g.parts } else { 0 };
        let grid = self.grids.qkv_backward();
        launch!(
            self.program,
            "qkv_backward",
            grid,
            g.qkv,
            at.qkv,
            at.qk_rstd,
            norm(0),
            norm(s.head_dim),
            places.index(packed.positions),
            places.rope,
            parts,
            t
        )?;
        if s.qk_norm {
            self.reduce(places, grid.blocks.0, l.qk_norm, 2 * s.head_dim)?;
        }
        if s.qkv_bias && self.adapters.is_none() {
            let grid = self.grids.column_sums(s.qkv());
            launch!(self.program, "column_sums", grid, g.qkv, g.parts, t, s.qkv())?;
            self.reduce(places, grid.blocks.1, l.qkv_bias, s.qkv())?;
        }
        self.product_backward(g.qkv, at.h1, l.qkv, g.h, (t, s.qkv(), e))?;
        self.adapter_backward(i, Beside::Qkv, (g.qkv, at.h1, g.h), t, at, places)?;
        self.norm_backward((g.h, at.x, at.rstd1, g.x, g.x), l.input_norm, t, places)
    }

    /// From the gradient of attention's output to those of queries, keys and values.
    fn scores_backward(
        &self,
        i: usize,
        packed: &Packed,
        at: &LayerPlaces,
        places: &Places,
    ) -> Result<()> {
        let (s, g) = (&self.shape, places.gradients);
        let ([q, k, v], [q_stride, k_stride, v_stride]) = self.heads(places, i);
        let width = s.qkv();
        let d_k = g.qkv + (self.element() * s.q()) as u64;
        let d_v = d_k + (self.element() * s.kv()) as u64;
        let items = places.index(packed.back_items);
        launch!(
            self.program,
            "attention_backward_dq",
            self.grids.attention_dq(packed.back_item_count),
            q,
            k,
            v,
            at.o,
            g.o,
            at.lse,
            g.delta,
            g.qkv,
            items,
            q_stride,
            k_stride,
            v_stride,
            width,
            packed.tokens
        )?;
        launch!(
            self.program,
            "attention_backward_dkv",
            self.grids.attention_dkv(packed.key_tile_count),
            q,
            k,
            v,
            g.o,
            at.lse,
            g.delta,
            d_k,
            d_v,
            items,
            places.index(packed.key_tiles),
            places.index(packed.item_list),
            q_stride,
            k_stride,
            v_stride,
            width,
            width,
            packed.tokens
        )
    }

    /// `dx = dy · w` and, unless weights are frozen, `dw += dyᵀ · x` for `y = x · wᵀ`; sizes are
    /// rows, outputs, inputs.
    fn product_backward(
        &self,
        dy: u64,
        x: u64,
        weight: usize,
        dx: u64,
        sizes: (usize, usize, usize),
    ) -> Result<()> {
        let profile = &mut self.program.profile.borrow_mut();
        let stride = sizes.1;
        self.blas.input_gradient(profile, dy, self.matrix(weight), dx, sizes, stride)?;
        if self.adapters.is_some() {
            return Ok(());
        }
        let dw = self.gradient(weight)?;
        self.blas.weight_gradient(profile, x, dy, dw, sizes, stride, true)
    }

    /// Gradient of a norm's input plus that of the residual beside it, and of the norm's weight.
    fn norm_backward(
        &self,
        (dh, x, rstd, residual, dx): (u64, u64, u64, u64, u64),
        weight: usize,
        rows: usize,
        places: &Places,
    ) -> Result<()> {
        let (e, grid) = (self.shape.hidden_size, self.grids.norm_backward());
        launch!(
            self.program,
            "rms_norm_backward",
            grid,
            dh,
            x,
            self.weight(weight),
            rstd,
            residual,
            dx,
            places.gradients.parts,
            rows
        )?;
        self.reduce(places, grid.blocks.0, weight, e)
    }

    /// Adds the rows of sums that the blocks of a kernel left to a gradient, unless that is frozen.
    fn reduce(&self, places: &Places, rows: usize, weight: usize, columns: usize) -> Result<()> {
        if self.adapters.is_some() {
            return Ok(());
        }
        let (parts, out) = (places.gradients.parts, self.gradient(weight)?);
        let grid = self.grids.reduce(columns);
        launch!(self.program, "reduce_rows", grid, parts, out, rows, columns, 1i32)
    }

    fn embedding_backward(&self, packed: &Packed, places: &Places) -> Result<()> {
        let (e, g) = (self.shape.hidden_size, places.gradients);
        let pieces = packed.pieces.len - 1;
        let table =
            self.adapters.as_ref().map_or(self.layout.embedding, |adapters| adapters.mask_row);
        launch!(
            self.program,
            "piece_sums",
            self.grids.vectors(pieces * e),
            g.x,
            places.index(packed.order),
            places.index(packed.pieces),
            g.pieces,
            pieces
        )?;
        launch!(
            self.program,
            "add_pieces",
            self.grids.quads(packed.rows.len * e),
            g.pieces,
            places.index(packed.firsts),
            places.index(packed.rows),
            self.gradient(table)?,
            packed.rows.len
        )
    }
}
