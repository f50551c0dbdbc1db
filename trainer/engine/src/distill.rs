//! Losses of targets beside what the source predicts there.

use std::ops::Range;

use crate::batch::Packed;
use crate::error::Result;
use crate::model::Model;
use crate::places::Places;
use crate::program::launch;

impl Model {
    /// Compares the logits of a chunk of targets, in `places.logits`, with the right tokens and
    /// with the logits at their teachers: three numbers for each target. With a scale the logits
    /// become the gradient of the losses by them.
    pub(crate) fn judge(
        &self,
        packed: &Packed,
        places: &Places,
        chunk: Range<usize>,
        scale: Option<f32>,
    ) -> Result<()> {
        let (s, at, rows) = (&self.shape, places.teacher, chunk.len());
        let (e, first) = (s.hidden_size, chunk.start as u64);
        let hidden = places.input(s.num_hidden_layers);
        let teachers = places.index(packed.teachers) + 4 * first;
        let grid = self.grids.vectors(rows * e);
        launch!(self.program, "gather_rows", grid, hidden, teachers, at.picked, rows)?;
        self.norm(at.picked, self.layout.final_norm, at.normed, at.rstd, rows)?;
        self.product(at.normed, self.layout.head, at.logits, (rows, s.padded_vocab(), e))?;
        let never = s.adapters.as_ref().map_or(-1, |adapters| adapters.mask_token_id as i32);
        launch!(
            self.program,
            "mixed_losses",
            self.grids.mixed_losses(rows),
            places.logits,
            at.logits,
            places.index(packed.targets) + 4 * first,
            places.losses + 12 * first,
            never,
            packed.distill,
            scale.unwrap_or(0.0),
            rows,
            i32::from(scale.is_some())
        )
    }
}
