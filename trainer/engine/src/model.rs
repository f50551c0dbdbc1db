//! The decoder's state on the GPU: compiled kernels, weights, gradients and moments, with the
//! addresses that the passes ask for.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use crate::adapters::AdapterLayout;
use crate::blas::Blas;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::frozen::Frozen;
use crate::grids::Grids;
use crate::options::{Options, Precision};
use crate::profile::Profile;
use crate::program::{Program, launch};
use crate::shape::{Layout, Parameter, Role, Shape};

/// A decoder on a GPU, without memory for activations.
pub(crate) struct Model {
    pub(crate) device: Rc<Device>,
    pub(crate) shape: Shape,
    pub(crate) layout: Layout,
    pub(crate) options: Options,
    pub(crate) program: Program,
    pub(crate) blas: Blas,
    pub(crate) grids: Grids,
    /// Every parameter; those of adapters stand behind the others.
    pub(crate) parameters: Vec<Parameter>,
    /// Where the trained parameters stand, where those are adapters.
    pub(crate) adapters: Option<AdapterLayout>,
    /// The other weights then.
    frozen: Option<Frozen>,
    /// Whether the table has the mask token's trained row.
    pub(crate) row_is_copied: Cell<bool>,
    /// Master weights of what is trained, fp32.
    weights: Buffer,
    /// The same as the matrix products read them, where those are not the master weights: in bf16,
    /// or rounded by BitLinear.
    copies: Option<Buffer>,
    training: Option<Training>,
    /// What norms before `down_proj` need, which are as wide as the MLP.
    pub(crate) wide: Option<Wide>,
    pub(crate) quantization: Quantization,
}

/// Kernels and launch geometry for rows of F elements instead of E.
pub(crate) struct Wide {
    pub program: Program,
    pub grids: Grids,
}

/// How far BitLinear rounds, and what it has rounded.
#[derive(Default)]
pub(crate) struct Quantization {
    /// 0: not at all; 1: fully.
    pub lambda: Cell<f32>,
    /// The lambda for which the copies hold rounded weights, if they do.
    rounded: Cell<Option<f32>>,
    /// A sum, then its parts, fp32.
    scratch: Option<Buffer>,
}

/// What only training needs, fp32.
struct Training {
    /// As long as the weights.
    gradients: Buffer,
    /// As long as this engine's share of the weights.
    first_moments: Buffer,
    second_moments: Buffer,
}

impl Wide {
    fn new(
        device: &Rc<Device>,
        shape: &Shape,
        options: Options,
        profile: &Rc<RefCell<Profile>>,
    ) -> Result<Self> {
        let shape = Shape { hidden_size: shape.intermediate_size, ..shape.clone() };
        let grids = Grids::new(&shape, options.precision, device.multiprocessors()?);
        let program = Program::compile(device, &shape.defines(), options.precision, profile)?;
        Ok(Wide { program, grids })
    }
}

impl Model {
    /// A decoder with zero weights on the GPU with this CUDA index.
    pub(crate) fn new(device: usize, shape: Shape, options: Options) -> Result<Self> {
        shape.check()?;
        let device = Device::open(device)?;
        let grids = Grids::new(&shape, options.precision, device.multiprocessors()?);
        let mut defines = shape.defines();
        defines.extend(grids.attention_defines());
        let profile = Rc::new(RefCell::new(Profile::default()));
        let program = Program::compile(&device, &defines, options.precision, &profile)?;
        let wide = match shape.sub_norms {
            false => None,
            true => Some(Wide::new(&device, &shape, options, &profile)?),
        };
        let blas = Blas::new(&device, options.precision)?;
        let layout = Layout::new(&shape);
        let adapters = shape.adapters.as_ref().map(|a| AdapterLayout::new(&shape, a));
        let n = adapters.as_ref().map_or(layout.total, |adapters| adapters.total);
        let frozen = match &adapters {
            None => None,
            Some(_) => Some(Frozen::new(&device, &layout, options.precision)?),
        };
        let added = adapters.iter().flat_map(|adapters| &adapters.parameters);
        let parameters = layout.parameters.iter().chain(added).copied().collect();
        let zeros = |bytes: usize, what| -> Result<Buffer> {
            let buffer = device.allocate(bytes, what)?;
            device.clear(buffer.address(), buffer.bytes())?;
            Ok(buffer)
        };
        let weights = zeros(4 * n, "weights")?;
        let copies = match options.precision {
            Precision::Bf16 => Some(zeros(2 * n, "weights in bf16")?),
            Precision::Fp32 if shape.bit_linear && frozen.is_none() => {
                Some(zeros(4 * n, "rounded weights")?)
            }
            Precision::Fp32 => None,
        };
        let scratch = match shape.bit_linear {
            false => None,
            true => Some(device.allocate(4 * (1 + grids.sum_squares().blocks.0), "sums")?),
        };
        let quantization =
            Quantization { lambda: Cell::new(1.0), rounded: Cell::new(None), scratch };
        let training = match options.training {
            false => None,
            true => Some(Training {
                gradients: zeros(4 * n, "gradients")?,
                first_moments: zeros(4 * options.share.range(n).len(), "first moments")?,
                second_moments: zeros(4 * options.share.range(n).len(), "second moments")?,
            }),
        };
        Ok(Model {
            device,
            shape,
            layout,
            options,
            program,
            blas,
            grids,
            parameters,
            adapters,
            frozen,
            row_is_copied: Cell::new(false),
            weights,
            copies,
            training,
            wide,
            quantization,
        })
    }

    /// The parameter of this role.
    pub(crate) fn parameter(&self, role: Role) -> Result<Parameter> {
        let found = self.parameters.iter().find(|p| p.role == role).copied();
        found.ok_or_else(|| Error::Unsupported(format!("a model with {role:?}")))
    }

    /// The parameter of this role, which must have `len` values.
    pub(crate) fn sized(&self, role: Role, len: usize) -> Result<Parameter> {
        let parameter = self.parameter(role)?;
        if parameter.len == len {
            return Ok(parameter);
        }
        Err(Error::Unsupported(format!(
            "{len} values for {role:?}, which has {} in this model",
            parameter.len
        )))
    }

    fn training(&self) -> Result<&Training> {
        self.training.as_ref().ok_or_else(|| {
            Error::Unsupported("training with an engine that was made for evaluation".into())
        })
    }

    /// Elements of what is trained: everything, or what adapters add.
    pub(crate) fn trained(&self) -> usize {
        self.adapters.as_ref().map_or(self.layout.total, |adapters| adapters.total)
    }

    /// Elements of it with weight decay; the rest has none.
    pub(crate) fn decayed(&self) -> usize {
        self.adapters.as_ref().map_or(self.layout.decayed, |adapters| adapters.total)
    }

    /// Address of the master weight of a trained element.
    pub(crate) fn trained_weight(&self, offset: usize) -> u64 {
        self.weights.address() + 4 * offset as u64
    }

    /// Address of a trained element as the matrix products read it, where that are adapters.
    pub(crate) fn trained_matrix(&self, offset: usize) -> u64 {
        match &self.copies {
            Some(copies) => copies.address() + (self.element() * offset) as u64,
            None => self.trained_weight(offset),
        }
    }

    /// Address of a norm or a bias of the model, or of a master weight where all are trained.
    pub(crate) fn weight(&self, offset: usize) -> u64 {
        match &self.frozen {
            Some(frozen) => frozen.vector(offset, self.layout.decayed),
            None => self.trained_weight(offset),
        }
    }

    /// Address of a weight of the model as the matrix products read it.
    pub(crate) fn matrix(&self, offset: usize) -> u64 {
        if let Some(frozen) = &self.frozen {
            return frozen.matrix(offset, self.element());
        }
        let rounded = (self.layout.matrices..self.layout.decayed).contains(&offset);
        match &self.copies {
            Some(copies) if self.element() == 2 || rounded => {
                copies.address() + (self.element() * offset) as u64
            }
            _ => self.weight(offset),
        }
    }

    /// Address of a trained weight's bf16 copy; 0 in fp32.
    pub(crate) fn bf16_copy(&self, offset: usize) -> u64 {
        match (&self.copies, self.options.precision) {
            (Some(copies), Precision::Bf16) => copies.address() + 2 * offset as u64,
            _ => 0,
        }
    }

    /// Says that weights have changed, so that BitLinear rounds them again, and the mask token's
    /// row is copied again.
    pub(crate) fn weights_changed(&self) {
        self.quantization.rounded.set(None);
        self.row_is_copied.set(false);
    }

    /// Rounds the layers' matrices where BitLinear does so, unless they are rounded already.
    pub(crate) fn round_matrices(&self) -> Result<()> {
        if !self.shape.bit_linear || self.frozen.is_some() {
            return Ok(());
        }
        let lambda = self.quantization.lambda.get();
        if self.quantization.rounded.get() == Some(lambda) {
            return Ok(());
        }
        let matrices = self.layout.matrices..self.layout.decayed;
        for p in self.layout.parameters.iter().filter(|p| matrices.contains(&p.offset)) {
            self.ternarize(self.weight(p.offset), p.len, lambda, self.matrix(p.offset))?;
        }
        self.quantization.rounded.set(Some(lambda));
        Ok(())
    }

    /// Rounds the matrix of `len` numbers at `w` to ternary values, into `out` in the dtype of the
    /// passes.
    pub(crate) fn ternarize(&self, w: u64, len: usize, lambda: f32, out: u64) -> Result<()> {
        let Some(scratch) = &self.quantization.scratch else { return Ok(()) };
        let (sum, parts) = (scratch.address(), scratch.address() + 4);
        let (grid, n) = (self.grids.sum_squares(), len as i64);
        launch!(self.program, "sum_magnitudes", grid, w, n, parts)?;
        let blocks = grid.blocks.0;
        launch!(self.program, "finish_sum", self.grids.vectors(1), parts, blocks, sum)?;
        launch!(self.program, "ternarize", self.grids.elements(len), w, n, sum, lambda, out)
    }

    /// Address of a gradient.
    pub(crate) fn gradient(&self, offset: usize) -> Result<u64> {
        Ok(self.training()?.gradients.address() + 4 * offset as u64)
    }

    /// The weights whose moments are here.
    pub(crate) fn share(&self) -> Range<usize> {
        self.options.share.range(self.trained())
    }

    /// The weights of a parameter whose moments are here.
    pub(crate) fn held(&self, parameter: Parameter) -> Range<usize> {
        let share = self.share();
        let start = parameter.offset.clamp(share.start, share.end);
        start..(parameter.offset + parameter.len).clamp(start, share.end)
    }

    /// Addresses of the first and second moment of a weight of this engine's share.
    pub(crate) fn moments(&self, offset: usize) -> Result<(u64, u64)> {
        let (training, share) = (self.training()?, self.share());
        if !(share.start..=share.end).contains(&offset) {
            return Err(Error::Unsupported(format!(
                "moments at {offset} in an engine that holds {share:?}"
            )));
        }
        let at = 4 * (offset - share.start) as u64;
        Ok((training.first_moments.address() + at, training.second_moments.address() + at))
    }

    /// Bytes of one element of activations.
    pub(crate) fn element(&self) -> usize {
        self.options.precision.element()
    }

    /// Brings the copy of a parameter that has changed up to date.
    pub(crate) fn copy_weights(&self, parameter: Parameter) -> Result<()> {
        self.weights_changed();
        let (w, w16) = (self.trained_weight(parameter.offset), self.bf16_copy(parameter.offset));
        if w16 == 0 {
            return Ok(());
        }
        let grid = self.grids.vectors(parameter.len);
        launch!(self.program, "cast_to_bf16", grid, w, w16, parameter.len as i64)
    }

    /// The parameter of this role, which must be trained.
    pub(crate) fn trained_parameter(&self, role: Role) -> Result<Parameter> {
        let parameter = self.parameter(role)?;
        if !parameter.frozen {
            return Ok(parameter);
        }
        Err(Error::Unsupported(format!("gradients or moments of {role:?}, which is not trained")))
    }

    /// The values of a trained parameter in the arena that starts at `arena`.
    pub(crate) fn read(&self, role: Role, arena: u64) -> Result<Vec<f32>> {
        let parameter = self.trained_parameter(role)?;
        self.read_at(arena + 4 * parameter.offset as u64, parameter.len)
    }

    /// `len` fp32 numbers from an address on.
    pub(crate) fn read_at(&self, address: u64, len: usize) -> Result<Vec<f32>> {
        self.device.enter()?;
        let mut values = vec![0f32; len];
        self.device.download(address, &mut values)?;
        Ok(values)
    }
}
