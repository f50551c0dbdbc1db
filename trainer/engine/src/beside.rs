//! What adapters add to the passes: products beside those of the frozen matrices.
//!
//! For the targets that read one input, `inner = scale · x Aᵀ` is one product over all their As,
//! and each `y += inner Bᵀ` another. Adapters act on the first `packed.adapted` rows alone.

use crate::adapters::{AdapterLayout, Group};
use crate::batch::Packed;
use crate::blas::Sum;
use crate::error::Result;
use crate::model::Model;
use crate::places::{LayerPlaces, Places};
use crate::profile::Profile;
use crate::program::launch;

/// The targets of a layer that read one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    Qkv,
    Output,
    GateUp,
    Down,
}

const ADD: Sum = Sum { factor: 1.0, accumulate: true };

impl Model {
    /// The group and the place of its inner columns; nothing where it has no adapter.
    fn group(&self, i: usize, which: Beside, at: &LayerPlaces) -> Option<(&Group, u64)> {
        let layers = &self.adapters.as_ref()?.layers[i];
        let (group, inner) = match which {
            Beside::Qkv => (&layers.qkv, at.inner[0]),
            Beside::Output => (&layers.output, at.inner[1]),
            Beside::GateUp => (&layers.gate_up, at.inner[2]),
            Beside::Down => (&layers.down, at.inner[3]),
        };
        (group.width > 0).then_some((group, inner))
    }

    fn adapter_scale(&self) -> f32 {
        self.shape.adapters.as_ref().map_or(1.0, |adapters| adapters.scale)
    }

    /// `inner = scale · x Aᵀ`: what a backward pass needs of the adapters' forward pass.
    pub(crate) fn adapter_inner(
        &self,
        i: usize,
        which: Beside,
        x: u64,
        rows: usize,
        at: &LayerPlaces,
    ) -> Result<()> {
        let Some((group, inner)) = self.group(i, which, at) else { return Ok(()) };
        let profile = &mut self.program.profile.borrow_mut();
        let operands = ((x, group.inputs), self.trained_matrix(group.a), (inner, group.width));
        let sum = Sum { factor: self.adapter_scale(), accumulate: false };
        self.blas.adapter_forward(profile, operands, (rows, group.width, group.inputs), sum)
    }

    /// Adds `inner Bᵀ` to the columns of `y` that belong to each target.
    pub(crate) fn adapter_outer(
        &self,
        i: usize,
        which: Beside,
        y: u64,
        rows: usize,
        at: &LayerPlaces,
    ) -> Result<()> {
        let Some((group, inner)) = self.group(i, which, at) else { return Ok(()) };
        let (profile, size) = (&mut self.program.profile.borrow_mut(), self.element() as u64);
        let rank = group.width / group.branches.len();
        for branch in &group.branches {
            let from = (inner + size * branch.inner as u64, group.width);
            let to = (y + size * branch.column as u64, group.stride);
            let operands = (from, self.trained_matrix(branch.b), to);
            self.blas.adapter_forward(profile, operands, (rows, branch.outputs, rank), ADD)?;
        }
        Ok(())
    }

    /// Backward through the adapters of one input `x` from the gradient `dy` of the targets'
    /// outputs: adds to the gradients of As and Bs, and to `dx`.
    pub(crate) fn adapter_backward(
        &self,
        i: usize,
        which: Beside,
        (dy, x, dx): (u64, u64, u64),
        rows: usize,
        at: &LayerPlaces,
        places: &Places,
    ) -> Result<()> {
        let Some((group, inner)) = self.group(i, which, at) else { return Ok(()) };
        let (profile, size) = (&mut self.program.profile.borrow_mut(), self.element() as u64);
        let (rank, d_inner) = (group.width / group.branches.len(), places.gradients.inner);
        let sum = Sum { factor: self.adapter_scale(), accumulate: false };
        for branch in &group.branches {
            let offset = size * branch.inner as u64;
            let from = (dy + size * branch.column as u64, group.stride);
            let sizes = (rows, branch.outputs, rank);
            let operands = ((inner + offset, group.width), from, self.gradient(branch.b)?);
            self.blas.adapter_weight_gradient(profile, operands, sizes)?;
            let operands = (from, self.trained_matrix(branch.b), (d_inner + offset, group.width));
            self.blas.adapter_input_gradient(profile, operands, sizes, sum)?;
        }
        let sizes = (rows, group.width, group.inputs);
        let (x, from) = ((x, group.inputs), (d_inner, group.width));
        self.blas.adapter_weight_gradient(profile, (x, from, self.gradient(group.a)?), sizes)?;
        let operands = (from, self.trained_matrix(group.a), (dx, group.inputs));
        self.blas.adapter_input_gradient(profile, operands, sizes, ADD)
    }

    /// The input of the tokens that gated adapters act on: the trained row.
    pub(crate) fn embed_mask_row(&self, packed: &Packed, places: &Places) -> Result<()> {
        let Some(AdapterLayout { mask_row, .. }) = self.adapters else { return Ok(()) };
        if !self.is_gated() {
            return Ok(());
        }
        let (n, e) = (packed.adapted, self.shape.hidden_size);
        let (row, first) = (self.trained_matrix(mask_row), places.index(packed.first_row));
        let grid = self.grids.vectors(n * e);
        launch!(self.program, "gather_rows", grid, row, first, places.input(0), n)
    }

    /// Whether adapters act on some tokens alone.
    pub(crate) fn is_gated(&self) -> bool {
        self.shape.adapters.as_ref().is_some_and(|adapters| adapters.gated)
    }

    /// What the head adds to the gradient of the mask token's row: where it is tied to the table,
    /// the row's own products with the states.
    pub(crate) fn head_row_gradient(
        &self,
        profile: &mut Profile,
        states: u64,
        places: &Places,
        rows: usize,
    ) -> Result<()> {
        let (Some(layout), Some(adapters)) = (&self.adapters, &self.shape.adapters) else {
            return Ok(());
        };
        if adapters.gated || !self.shape.tie_word_embeddings {
            return Ok(());
        }
        let (e, v) = (self.shape.hidden_size, self.shape.padded_vocab());
        let column = places.logits + (self.element() * adapters.mask_token_id) as u64;
        let operands = ((states, e), (column, v), self.gradient(layout.mask_row)?);
        self.blas.adapter_weight_gradient(profile, operands, (rows, 1, e))
    }
}
