//! Values of frozen parameters to and from the GPU, and what has to follow when weights change.

use crate::error::Result;
use crate::model::Model;
use crate::options::Precision;
use crate::program::launch;
use crate::shape::Parameter;

/// Numbers that are converted or drawn at a time.
const PIECE: usize = 16 << 20;

impl Model {
    /// Brings what the passes read up to date.
    pub(crate) fn ready(&self) -> Result<()> {
        self.copy_mask_row()?;
        self.round_matrices()
    }

    fn is_vector(&self, parameter: Parameter) -> bool {
        parameter.offset >= self.layout.decayed
    }

    /// Copies the values of a frozen parameter to the GPU.
    pub(crate) fn set_frozen(&self, parameter: Parameter, values: &[f32]) -> Result<()> {
        self.weights_changed();
        if self.is_vector(parameter) {
            return self.device.upload(self.weight(parameter.offset), values);
        }
        let at = self.matrix(parameter.offset);
        if self.options.precision == Precision::Fp32 {
            return self.device.upload(at, values);
        }
        for (i, piece) in values.chunks(PIECE).enumerate() {
            let rounded: Vec<u16> =
                piece.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
            self.device.upload(at + (2 * i * PIECE) as u64, &rounded)?;
        }
        Ok(())
    }

    /// Draws a frozen matrix or table from a normal distribution, rounded as the passes read it.
    pub(crate) fn draw_frozen(&self, parameter: Parameter, std: f32, seed: u64) -> Result<()> {
        self.weights_changed();
        let m = self;
        let ternary =
            m.shape.bit_linear && (m.layout.matrices..m.layout.decayed).contains(&parameter.offset);
        // a matrix is made ternary as a whole
        let most = if ternary { parameter.len } else { PIECE.min(parameter.len) };
        let drawn = m.device.allocate(4 * most, "weights that are drawn")?;
        for first in (0..parameter.len).step_by(most) {
            let n = most.min(parameter.len - first);
            let (from, offset) = (drawn.address(), parameter.offset + first);
            let (stream, quads) = (offset as i64, m.grids.quads(n));
            launch!(m.program, "fill_normal", quads, from, n as i64, std, seed as i64, stream)?;
            let to = if m.is_vector(parameter) { m.weight(offset) } else { m.matrix(offset) };
            if ternary {
                m.ternarize(from, n, 1.0, to)?;
            } else if m.is_vector(parameter) || m.options.precision == Precision::Fp32 {
                m.device.copy(to, from, 4 * n)?;
            } else {
                launch!(m.program, "cast_to_bf16", m.grids.vectors(n), from, to, n as i64)?;
            }
        }
        m.device.wait()
    }

    /// The values of a frozen parameter.
    pub(crate) fn read_frozen(&self, parameter: Parameter) -> Result<Vec<f32>> {
        if self.is_vector(parameter) {
            return self.read_at(self.weight(parameter.offset), parameter.len);
        }
        let at = self.matrix(parameter.offset);
        if self.options.precision == Precision::Fp32 {
            return self.read_at(at, parameter.len);
        }
        self.device.enter()?;
        let mut bits = vec![0u16; parameter.len];
        self.device.download(at, &mut bits)?;
        Ok(bits.into_iter().map(|b| half::bf16::from_bits(b).to_f32()).collect())
    }

    /// Copies the trained row of the mask token into the embedding table, unless that was done
    /// since weights changed, or adapters are gated.
    fn copy_mask_row(&self) -> Result<()> {
        let Some(layout) = &self.adapters else { return Ok(()) };
        let ungated = self.shape.adapters.as_ref().filter(|adapters| !adapters.gated);
        let Some(adapters) = ungated.filter(|_| !self.row_is_copied.replace(true)) else {
            return Ok(());
        };
        let e = self.shape.hidden_size;
        let to = self.matrix(self.layout.embedding + adapters.mask_token_id * e);
        self.device.copy(to, self.trained_matrix(layout.mask_row), self.element() * e)
    }
}
