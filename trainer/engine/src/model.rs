//! The decoder's state on the GPU: compiled kernels, weights, gradients and moments, with the
//! addresses that the passes ask for.

use std::rc::Rc;

use crate::blas::Blas;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::grids::Grids;
use crate::options::{Options, Precision};
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
    /// Master weights, fp32.
    weights: Buffer,
    /// The same in bf16, for the matrix products; none in fp32.
    weights16: Option<Buffer>,
    training: Option<Training>,
}

/// What only training needs, each as long as the weights, fp32.
struct Training {
    gradients: Buffer,
    first_moments: Buffer,
    second_moments: Buffer,
}

impl Model {
    /// A decoder with zero weights on the GPU with this CUDA index.
    pub(crate) fn new(device: usize, shape: Shape, options: Options) -> Result<Self> {
        shape.check()?;
        let device = Device::open(device)?;
        let grids = Grids::new(&shape, options.precision, device.multiprocessors()?);
        let mut defines = shape.defines();
        defines.extend(grids.attention_defines());
        let program = Program::compile(&device, &defines, options.precision)?;
        let blas = Blas::new(&device, options.precision)?;
        let layout = Layout::new(&shape);
        let n = layout.total;
        let zeros = |bytes: usize, what| -> Result<Buffer> {
            let buffer = device.allocate(n * bytes, what)?;
            device.clear(buffer.address(), buffer.bytes())?;
            Ok(buffer)
        };
        let weights = zeros(4, "weights")?;
        let weights16 = match options.precision {
            Precision::Bf16 => Some(zeros(2, "weights in bf16")?),
            Precision::Fp32 => None,
        };
        let training = match options.training {
            false => None,
            true => Some(Training {
                gradients: zeros(4, "gradients")?,
                first_moments: zeros(4, "first moments")?,
                second_moments: zeros(4, "second moments")?,
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
            weights,
            weights16,
            training,
        })
    }

    /// The parameter of this role.
    pub(crate) fn parameter(&self, role: Role) -> Result<Parameter> {
        let found = self.layout.parameters.iter().find(|p| p.role == role).copied();
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

    /// Address of a master weight.
    pub(crate) fn weight(&self, offset: usize) -> u64 {
        self.weights.address() + 4 * offset as u64
    }

    /// Address of a weight as the matrix products read it.
    pub(crate) fn matrix(&self, offset: usize) -> u64 {
        match &self.weights16 {
            Some(weights) => weights.address() + 2 * offset as u64,
            None => self.weight(offset),
        }
    }

    /// Address of a weight's bf16 copy; 0 where there is none.
    pub(crate) fn rounded(&self, offset: usize) -> u64 {
        self.weights16.as_ref().map_or(0, |weights| weights.address() + 2 * offset as u64)
    }

    /// Address of a gradient.
    pub(crate) fn gradient(&self, offset: usize) -> Result<u64> {
        Ok(self.training()?.gradients.address() + 4 * offset as u64)
    }

    /// Addresses of a parameter's first and second moment.
    pub(crate) fn moments(&self, offset: usize) -> Result<(u64, u64)> {
        let training = self.training()?;
        let at = 4 * offset as u64;
        Ok((training.first_moments.address() + at, training.second_moments.address() + at))
    }

    /// Bytes of one element of activations.
    pub(crate) fn element(&self) -> usize {
        self.options.precision.element()
    }

    /// Brings the bf16 copy of a parameter up to date.
    pub(crate) fn round_weights(&self, parameter: Parameter) -> Result<()> {
        if self.weights16.is_none() {
            return Ok(());
        }
        let (w, w16) = (self.weight(parameter.offset), self.matrix(parameter.offset));
        let grid = self.grids.vectors(parameter.len);
        launch!(self.program, "cast_to_bf16", grid, w, w16, parameter.len as i64)
    }

    /// The values of a parameter in the arena that starts at `arena`.
    pub(crate) fn read(&self, role: Role, arena: u64) -> Result<Vec<f32>> {
        let parameter = self.parameter(role)?;
        self.device.enter()?;
        let mut values = vec![0f32; parameter.len];
        self.device.download(arena + 4 * parameter.offset as u64, &mut values)?;
        Ok(values)
    }
}
