//! The engine: weights and optimizer state on the GPU, and the steps of training.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::arena::Arena;
use crate::batch::{Batch, Packed};
use crate::blas::Blas;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::forward::Places;
use crate::profile::KernelTime;
use crate::grids::Grids;
use crate::program::{Program, launch};
use crate::shape::{Layout, Parameter, Role, Shape};

/// Choices that trade memory for time.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Keep only the input of each layer and run the layer again in the backward pass.
    pub activation_checkpointing: bool,
    /// Most bytes of logits that exist at one time.
    pub logits_bytes: usize,
    /// Gradients and optimizer state; an engine without them only evaluates.
    pub training: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { activation_checkpointing: false, logits_bytes: 2 << 30, training: true }
    }
}

/// One AdamW update: everything but the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay of matrices and tables, decoupled; norms and biases have none.
    pub decay: f32,
    /// Factor on the gradients, applied first.
    pub clip: f32,
    /// `1 - beta1^t`.
    pub correction1: f32,
    /// `1 - beta2^t`.
    pub correction2: f32,
}

/// A decoder on a GPU.
pub struct Engine {
    pub(crate) device: Rc<Device>,
    pub(crate) shape: Shape,
    pub(crate) layout: Layout,
    pub(crate) options: Options,
    pub(crate) program: Program,
    pub(crate) blas: Blas,
    /// Master weights, fp32.
    weights: Buffer,
    /// The same in bf16, for the matrix products.
    weights16: Buffer,
    training: Option<Training>,
    pub(crate) activations: Arena,
    pub(crate) indices: Arena,
    /// Cosines, then sines, of each position, `[positions, D]` fp32.
    rope: Arena,
    rope_positions: usize,
    /// Losses of the micro-batches since the last [`Engine::finish`], one per target.
    losses: Arena,
    losses_len: usize,
    pub(crate) grids: Grids,
}

/// What only training needs, each as long as the weights.
struct Training {
    gradients: Buffer,
    first_moments: Buffer,
    second_moments: Buffer,
    /// Whether gradients were added since they were last cleared.
    dirty: bool,
}

impl Engine {
    /// An engine with zero weights on the GPU with this CUDA index.
    ///
    /// # Errors
    /// [`Error::Missing`] without driver, NVRTC or cuBLAS; [`Error::Unsupported`] for shapes that
    /// the kernels are not written for; [`Error::OutOfMemory`].
    pub fn new(device: usize, shape: Shape, options: Options) -> Result<Self> {
        shape.check()?;
        let device = Device::open(device)?;
        let program = Program::compile(&device, &shape.defines())?;
        let blas = Blas::new(&device)?;
        let layout = Layout::new(&shape);
        let n = layout.total;
        let zeros = |elements: usize, bytes: usize, what| -> Result<Buffer> {
            let buffer = device.allocate(elements * bytes, what)?;
            device.clear(buffer.address(), buffer.bytes())?;
            Ok(buffer)
        };
        let weights = zeros(n, 4, "weights")?;
        let weights16 = zeros(n, 2, "weights in bf16")?;
        let training = match options.training {
            false => None,
            true => Some(Training {
                gradients: zeros(n, 4, "gradients")?,
                first_moments: zeros(n, 4, "first moments")?,
                second_moments: zeros(n, 4, "second moments")?,
                dirty: false,
            }),
        };
        let grids = Grids::new(&shape, device.multiprocessors()?);
        Ok(Engine {
            device,
            shape,
            layout,
            options,
            program,
            blas,
            weights,
            weights16,
            training,
            activations: Arena::default(),
            indices: Arena::default(),
            rope: Arena::default(),
            rope_positions: 0,
            losses: Arena::default(),
            losses_len: 0,
            grids,
        })
    }

    /// The parameters; [`Engine::set_weights`] and the others name them by their role.
    pub fn parameters(&self) -> &[Parameter] {
        &self.layout.parameters
    }

    fn parameter(&self, role: Role) -> Result<Parameter> {
        let found = self.layout.parameters.iter().find(|p| p.role == role).copied();
        found.ok_or_else(|| Error::Unsupported(format!("a model with {role:?}")))
    }

    fn training(&self) -> Result<&Training> {
        self.training.as_ref().ok_or_else(|| {
            Error::Unsupported("training with an engine that was made for evaluation".into())
        })
    }

    /// Copies a parameter's values to the GPU, in the order of the checkpoint.
    ///
    /// # Errors
    /// When the model has no such parameter or it has another length.
    pub fn set_weights(&mut self, role: Role, values: &[f32]) -> Result<()> {
        let parameter = self.sized(role, values.len())?;
        self.device.enter()?;
        let n = parameter.len as i64;
        let (w, w16) = (self.weight(parameter.offset), self.weight16(parameter.offset));
        self.device.upload(w, values)?;
        let grid = self.grids.vectors(parameter.len);
        launch!(self.program, "cast_to_bf16", grid, w, w16, n)
    }

    /// Draws a parameter from a normal distribution on the GPU; for benchmarks.
    ///
    /// # Errors
    /// When the model has no such parameter.
    pub fn draw_weights(&mut self, role: Role, std: f32, seed: u64) -> Result<()> {
        let parameter = self.parameter(role)?;
        self.device.enter()?;
        let n = parameter.len as i64;
        let (w, w16) = (self.weight(parameter.offset), self.weight16(parameter.offset));
        let (stream, quads) = (parameter.offset as i64, self.grids.quads(parameter.len));
        launch!(self.program, "fill_normal", quads, w, n, std, seed as i64, stream)?;
        launch!(self.program, "cast_to_bf16", self.grids.vectors(parameter.len), w, w16, n)
    }

    /// A parameter's values.
    ///
    /// # Errors
    /// When the model has no such parameter, or the GPU failed.
    pub fn weights(&self, role: Role) -> Result<Vec<f32>> {
        self.read(role, self.weights.address())
    }

    /// A parameter's gradient since the last [`Engine::clear_gradients`].
    ///
    /// # Errors
    /// As for [`Engine::weights`].
    pub fn gradients(&self, role: Role) -> Result<Vec<f32>> {
        self.read(role, self.training()?.gradients.address())
    }

    /// A parameter's first and second moment.
    ///
    /// # Errors
    /// As for [`Engine::weights`].
    pub fn moments(&self, role: Role) -> Result<(Vec<f32>, Vec<f32>)> {
        let training = self.training()?;
        Ok((
            self.read(role, training.first_moments.address())?,
            self.read(role, training.second_moments.address())?,
        ))
    }

    /// Sets a parameter's first and second moment.
    ///
    /// # Errors
    /// As for [`Engine::set_weights`].
    pub fn set_moments(&mut self, role: Role, first: &[f32], second: &[f32]) -> Result<()> {
        let parameter = self.sized(role, first.len())?;
        self.sized(role, second.len())?;
        let training = self.training()?;
        self.device.enter()?;
        let at = 4 * parameter.offset as u64;
        self.device.upload(training.first_moments.address() + at, first)?;
        self.device.upload(training.second_moments.address() + at, second)
    }

    fn sized(&self, role: Role, len: usize) -> Result<Parameter> {
        let parameter = self.parameter(role)?;
        if parameter.len == len {
            return Ok(parameter);
        }
        Err(Error::Unsupported(format!(
            "{len} values for {role:?}, which has {} in this model",
            parameter.len
        )))
    }

    fn read(&self, role: Role, arena: u64) -> Result<Vec<f32>> {
        let parameter = self.parameter(role)?;
        self.device.enter()?;
        let mut values = vec![0f32; parameter.len];
        self.device.download(arena + 4 * parameter.offset as u64, &mut values)?;
        Ok(values)
    }

    /// Address of a master weight.
    pub(crate) fn weight(&self, offset: usize) -> u64 {
        self.weights.address() + 4 * offset as u64
    }

    /// Address of a weight in bf16.
    pub(crate) fn weight16(&self, offset: usize) -> u64 {
        self.weights16.address() + 2 * offset as u64
    }

    /// Address of a gradient.
    pub(crate) fn gradient(&self, offset: usize) -> Result<u64> {
        Ok(self.training()?.gradients.address() + 4 * offset as u64)
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn clear_gradients(&mut self) -> Result<()> {
        self.device.enter()?;
        self.losses_len = 0;
        let bytes = 4 * self.layout.total;
        let at = self.training()?.gradients.address();
        if let Some(training) = &mut self.training
            && training.dirty
        {
            training.dirty = false;
            self.device.clear(at, bytes)?;
        }
        Ok(())
    }

    /// Forward and backward pass of a micro-batch: adds `scale` times the gradient of the summed
    /// cross-entropy to the gradients. Returns before the GPU is done; [`Engine::finish`] waits.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a batch that contradicts itself, [`Error::OutOfMemory`], or what
    /// the driver says.
    pub fn pass(&mut self, batch: &Batch, scale: f32) -> Result<()> {
        self.training()?;
        let packed = Packed::new(batch, self.shape.vocab_size)?;
        if packed.targets_len == 0 {
            return Ok(());
        }
        self.device.enter()?;
        let mut places = self.prepare(&packed, true)?;
        places.losses = self.room_for_losses(packed.targets_len)?;
        if let Some(training) = &mut self.training {
            training.dirty = true;
        }
        self.forward(&packed, &places)?;
        self.loss(&packed, &places, Some(scale))?;
        self.backward(&packed, &places)
    }

    /// Sum of the cross-entropies of a batch.
    ///
    /// # Errors
    /// As for [`Engine::pass`].
    pub fn loss_sum(&mut self, batch: &Batch) -> Result<f64> {
        let packed = Packed::new(batch, self.shape.vocab_size)?;
        if packed.targets_len == 0 {
            return Ok(0.0);
        }
        self.device.enter()?;
        let mut places = self.prepare(&packed, false)?;
        let before = self.losses_len;
        places.losses = self.room_for_losses(packed.targets_len)?;
        self.forward(&packed, &places)?;
        self.loss(&packed, &places, None)?;
        self.losses_len = before;
        let mut losses = vec![0f32; packed.targets_len];
        self.device.download(places.losses, &mut losses)?;
        Ok(losses.into_iter().map(f64::from).sum())
    }

    /// Logits of every token of a batch, `[T, vocab_size]`.
    ///
    /// # Errors
    /// As for [`Engine::pass`].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let all: Vec<i32> = (0..batch.input_ids.len() as i32).collect();
        let targets = vec![0; all.len()];
        let batch = Batch { predicted_at: all, targets, ..batch.clone() };
        let packed = Packed::new(&batch, self.shape.vocab_size)?;
        self.device.enter()?;
        let places = self.prepare(&packed, false)?;
        self.forward(&packed, &places)?;
        self.read_logits(&packed, &places)
    }

    /// Waits for the passes since [`Engine::clear_gradients`]: the sum of their cross-entropies and
    /// the L2 norm of all gradients.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn finish(&mut self) -> Result<(f64, f64)> {
        self.device.enter()?;
        let gradients = self.gradient(0)?;
        let n = self.layout.total as i64;
        let mut losses = vec![0f32; self.losses_len + 1];
        let grid = self.grids.sum_squares();
        let at = self.room_for_losses(grid.blocks.0 + 1)?;
        self.losses_len = losses.len() - 1;
        let parts = at + 4;
        launch!(self.program, "sum_squares", grid, gradients, n, parts)?;
        launch!(self.program, "finish_sum", self.grids.vectors(1), parts, grid.blocks.0, at)?;
        let from = at - 4 * self.losses_len as u64;
        self.device.download(from, &mut losses)?;
        let squares = losses.pop().unwrap_or(0.0);
        self.losses_len = 0;
        Ok((losses.into_iter().map(f64::from).sum(), f64::from(squares).sqrt()))
    }

    /// One AdamW update of every parameter by the gradients.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn update(&mut self, step: AdamwStep) -> Result<()> {
        self.device.enter()?;
        let training = self.training()?;
        let parts = [(0, self.layout.decayed, step.decay), (self.layout.decayed, self.layout.total, 0.0)];
        for (start, end, decay) in parts {
            let (at, n) = (4 * start as u64, end - start);
            launch!(
                self.program,
                "adamw",
                self.grids.quads(n),
                self.weight(start),
                training.first_moments.address() + at,
                training.second_moments.address() + at,
                training.gradients.address() + at,
                self.weight16(start),
                n as i64,
                1.0 - step.lr * decay,
                step.lr,
                step.beta1,
                step.beta2,
                step.eps,
                step.clip,
                step.correction1,
                step.correction2,
            )?;
        }
        Ok(())
    }

    /// Waits for everything that was queued.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn wait(&self) -> Result<()> {
        self.device.wait()
    }

    /// Bytes of device memory: free and in all.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.device.memory()
    }

    /// Bytes that activations take at the moment.
    pub fn activation_bytes(&self) -> usize {
        self.activations.held()
    }

    /// Kernels and matrix products queued since the last call.
    pub fn take_launches(&self) -> u64 {
        self.program.profile.borrow_mut().take_launches()
    }

    /// Measures the time of every kernel from now on, or stops doing so. Costs time itself.
    pub fn time_kernels(&self, on: bool) {
        self.program.profile.borrow_mut().time(on);
    }

    /// Time by kernel since the last call; waits for the GPU.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn take_times(&self) -> Result<BTreeMap<&'static str, KernelTime>> {
        self.device.wait()?;
        self.program.profile.borrow_mut().take()
    }

    /// Room for the losses of `n` more targets; their address. Losses that are there are kept.
    fn room_for_losses(&mut self, n: usize) -> Result<u64> {
        let needed = 4 * (self.losses_len + n);
        if self.losses.held() < needed {
            let mut kept = vec![0f32; self.losses_len];
            if self.losses_len > 0 {
                let at = self.losses.room(&self.device, 4 * self.losses_len, "losses")?;
                self.device.download(at, &mut kept)?;
            }
            let at = self.losses.room(&self.device, 2 * needed, "losses")?;
            self.device.upload(at, &kept)?;
        }
        let start = self.losses.room(&self.device, needed, "losses")?;
        let at = start + 4 * self.losses_len as u64;
        self.losses_len += n;
        Ok(at)
    }

    /// Uploads the index arrays, makes room for activations and for the positions of a batch.
    fn prepare(&mut self, packed: &Packed, training: bool) -> Result<Places> {
        self.tabulate_rope(packed.positions_end)?;
        let keep_all = training && !self.options.activation_checkpointing;
        let plan = |start| Places::new(self, packed, start, keep_all, training);
        let bytes = plan(0).bytes;
        let start = {
            let device = self.device.clone();
            self.activations.room(&device, bytes, "activations")?
        };
        let mut places = Places::new(self, packed, start, keep_all, training);
        places.indices =
            self.indices.room(&self.device, 4 * packed.values.len(), "index arrays")?;
        self.device.upload(places.indices, &packed.values)?;
        places.rope = self.rope.room(&self.device, 0, "rotary tables")?;
        Ok(places)
    }

    /// Cosines and sines up to a position; they stay on the GPU.
    fn tabulate_rope(&mut self, positions: usize) -> Result<()> {
        if positions <= self.rope_positions {
            return Ok(());
        }
        let positions = positions.next_power_of_two().max(512);
        let half = self.shape.head_dim / 2;
        let mut table = vec![0f32; positions * 2 * half];
        for (position, row) in table.chunks_mut(2 * half).enumerate() {
            for (i, frequency) in self.shape.inv_freq.iter().enumerate() {
                // an fp32 product as in transformers, so that large positions round the same way
                let angle = f64::from(position as f32 * frequency);
                row[i] = angle.cos() as f32;
                row[half + i] = angle.sin() as f32;
            }
        }
        let at = self.rope.room(&self.device, 4 * table.len(), "rotary tables")?;
        self.device.upload(at, &table)?;
        self.rope_positions = positions;
        Ok(())
    }
}
