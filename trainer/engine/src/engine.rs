//! The engine: weights in and out, the steps of training.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::arena::Arena;
use crate::batch::Packed;
use crate::cache::Cache;
use crate::error::Result;
use crate::graphs::Graphs;
use crate::model::Model;
use crate::options::{AdamwStep, Options};
use crate::places::{Places, Sizes};
use crate::profile::KernelTime;
use crate::program::launch;
use crate::shape::{Parameter, Role, Shape};
use crate::streams::Batch;

/// A decoder on a GPU.
pub struct Engine {
    pub(crate) model: Model,
    activations: Arena,
    indices: Arena,
    /// Cosines, then sines, of each position, `[positions, D]` fp32.
    rope: Arena,
    rope_positions: usize,
    /// Losses of the micro-batches since the last [`Engine::finish`], one number per target, or
    /// three with teachers.
    losses: Arena,
    losses_len: usize,
    /// Whether gradients were added since they were last cleared.
    pub(crate) dirty: bool,
    /// Keys and values, in decoding.
    pub(crate) cache: Option<Cache>,
    /// Hidden states of the last pass that predictions are read from, and their number.
    pub(crate) hidden: Option<(u64, usize)>,
    pub(crate) predictions: Arena,
    pub(crate) graphs: Graphs,
    /// Where gradients of other engines arrive.
    pub(crate) staging: Arena,
}

impl Engine {
    /// An engine with zero weights on the GPU with this CUDA index.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing) without driver, NVRTC or cuBLAS;
    /// [`Error::Unsupported`](crate::Error::Unsupported) for shapes that the kernels are not
    /// written for; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(device: usize, shape: Shape, options: Options) -> Result<Self> {
        let model = Model::new(device, shape, options)?;
        Ok(Engine {
            graphs: Graphs::new(&model.device),
            model,
            activations: Arena::default(),
            indices: Arena::default(),
            rope: Arena::default(),
            rope_positions: 0,
            losses: Arena::default(),
            losses_len: 0,
            dirty: false,
            cache: None,
            hidden: None,
            predictions: Arena::default(),
            staging: Arena::default(),
        })
    }

    /// The parameters; [`Engine::set_weights`] and the others name them by their role.
    pub fn parameters(&self) -> &[Parameter] {
        &self.model.parameters
    }

    /// Copies a parameter's values to the GPU, in the order of the checkpoint.
    ///
    /// # Errors
    /// When the model has no such parameter or it has another length.
    pub fn set_weights(&mut self, role: Role, values: &[f32]) -> Result<()> {
        let m = &self.model;
        let parameter = m.sized(role, values.len())?;
        m.device.enter()?;
        if parameter.frozen {
            return m.set_frozen(parameter, values);
        }
        m.device.upload(m.trained_weight(parameter.offset), values)?;
        m.copy_weights(parameter)
    }

    /// Draws a parameter from a normal distribution on the GPU; for benchmarks.
    ///
    /// # Errors
    /// When the model has no such parameter.
    pub fn draw_weights(&mut self, role: Role, std: f32, seed: u64) -> Result<()> {
        let m = &self.model;
        let parameter = m.parameter(role)?;
        m.device.enter()?;
        if parameter.frozen {
            return m.draw_frozen(parameter, std, seed);
        }
        let (n, w) = (parameter.len as i64, m.trained_weight(parameter.offset));
        let (stream, quads) = (parameter.offset as i64, m.grids.quads(parameter.len));
        launch!(m.program, "fill_normal", quads, w, n, std, seed as i64, stream)?;
        m.copy_weights(parameter)
    }

    /// How far BitLinear rounds from now on: 0 not at all, 1 fully, which is what an engine starts
    /// with.
    pub fn set_quantization(&mut self, lambda: f32) {
        self.model.quantization.lambda.set(lambda);
    }

    /// A parameter's values.
    ///
    /// # Errors
    /// When the model has no such parameter, or the GPU failed.
    pub fn weights(&self, role: Role) -> Result<Vec<f32>> {
        let m = &self.model;
        let parameter = m.parameter(role)?;
        match parameter.frozen {
            true => m.read_frozen(parameter),
            false => m.read(role, m.trained_weight(0)),
        }
    }

    /// A parameter's gradient since the last [`Engine::clear_gradients`].
    ///
    /// # Errors
    /// As for [`Engine::weights`].
    pub fn gradients(&self, role: Role) -> Result<Vec<f32>> {
        self.model.read(role, self.model.gradient(0)?)
    }

    /// The part of a parameter whose moments this engine holds: where it begins in the parameter,
    /// and its first and second moments. All of it in an engine that trains alone.
    ///
    /// # Errors
    /// As for [`Engine::weights`].
    pub fn moments(&self, role: Role) -> Result<(usize, Vec<f32>, Vec<f32>)> {
        let m = &self.model;
        let parameter = m.trained_parameter(role)?;
        let held = m.held(parameter);
        if held.is_empty() {
            return Ok((0, Vec::new(), Vec::new()));
        }
        let (first, second) = m.moments(held.start)?;
        let start = held.start - parameter.offset;
        Ok((start, m.read_at(first, held.len())?, m.read_at(second, held.len())?))
    }

    /// Sets a parameter's first and second moment; what other engines hold of them is left out.
    ///
    /// # Errors
    /// As for [`Engine::set_weights`].
    pub fn set_moments(&mut self, role: Role, first: &[f32], second: &[f32]) -> Result<()> {
        let m = &self.model;
        let parameter = m.trained_parameter(role)?;
        m.sized(role, first.len())?;
        m.sized(role, second.len())?;
        let held = m.held(parameter);
        if held.is_empty() {
            return Ok(());
        }
        m.device.enter()?;
        let (to_first, to_second) = m.moments(held.start)?;
        let part = held.start - parameter.offset..held.end - parameter.offset;
        m.device.upload(to_first, &first[part.clone()])?;
        m.device.upload(to_second, &second[part])
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn clear_gradients(&mut self) -> Result<()> {
        let m = &self.model;
        m.device.enter()?;
        self.losses_len = 0;
        let at = m.gradient(0)?;
        if std::mem::take(&mut self.dirty) {
            m.device.clear(at, 4 * m.trained())?;
        }
        Ok(())
    }

    /// Forward and backward pass of a micro-batch: adds `scale` times the gradient of the summed
    /// losses to the gradients; teachers get none. Returns before the GPU is done;
    /// [`Engine::finish`] waits.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a batch that contradicts itself,
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), or what the driver says.
    pub fn pass(&mut self, batch: &Batch, scale: f32) -> Result<()> {
        self.model.gradient(0)?;
        let packed = self.packed(batch)?;
        if packed.targets_len == 0 {
            return Ok(());
        }
        self.model.device.enter()?;
        // the memory of an earlier pass's hidden states is used again
        self.hidden = None;
        let mut places = self.prepare(&packed, true)?;
        places.losses = self.room_for_losses(packed.targets_len * packed.numbers())?;
        self.dirty = true;
        let m = &self.model;
        m.forward(&packed, &places, |_| None)?;
        m.loss(&packed, &places, Some(scale))?;
        m.backward(&packed, &places)
    }

    /// The cross-entropies of a batch, or three numbers per target as [`Engine::finish`] has them.
    /// [`Engine::predict`] reads the tokens of this pass.
    ///
    /// # Errors
    /// As for [`Engine::pass`].
    pub fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let packed = self.packed(batch)?;
        self.hidden = None;
        if packed.targets_len == 0 {
            return Ok(Vec::new());
        }
        let numbers = packed.targets_len * packed.numbers();
        self.model.device.enter()?;
        let mut places = self.prepare(&packed, false)?;
        let before = self.losses_len;
        places.losses = self.room_for_losses(numbers)?;
        self.losses_len = before;
        let m = &self.model;
        m.forward(&packed, &places, |_| None)?;
        m.loss(&packed, &places, None)?;
        let mut losses = vec![0f32; numbers];
        m.device.download(places.losses, &mut losses)?;
        self.hidden = Some((places.input(m.shape.num_hidden_layers), packed.tokens));
        Ok(losses)
    }

    /// Logits of every token of a batch, `[T, vocab_size]`.
    ///
    /// # Errors
    /// As for [`Engine::pass`].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let all: Vec<i32> = (0..batch.input_ids.len() as i32).collect();
        let targets = vec![0; all.len()];
        let teachers = Vec::new();
        let batch = Batch { predicted_at: all, targets, teachers, ..batch.clone() };
        let packed = self.packed(&batch)?;
        self.hidden = None;
        self.model.device.enter()?;
        let places = self.prepare(&packed, false)?;
        self.model.forward(&packed, &places, |_| None)?;
        self.model.read_logits(&packed, &places)
    }

    /// Waits for the passes since [`Engine::clear_gradients`]: the cross-entropies of their targets
    /// in order, and the L2 norm of all gradients. A target with a teacher has three numbers: its
    /// cross-entropy, the divergence KL(teacher ‖ prediction), and 1 where both have the same most
    /// probable token, that of the mask left out, else 0.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn finish(&mut self) -> Result<(Vec<f32>, f64)> {
        self.finish_over(0..self.model.trained())
    }

    /// The same; the norm is that of the gradients of some of the weights.
    pub(crate) fn finish_over(&mut self, weights: Range<usize>) -> Result<(Vec<f32>, f64)> {
        self.model.device.enter()?;
        let grid = self.model.grids.sum_squares();
        // the sum of squares goes behind the losses, so that one copy reads both; then the parts
        let count = self.losses_len;
        let at = self.room_for_losses(grid.blocks.0 + 1)?;
        self.losses_len = 0;
        let (m, parts) = (&self.model, at + 4);
        let (gradients, n) = (m.gradient(weights.start)?, weights.len() as i64);
        launch!(m.program, "sum_squares", grid, gradients, n, parts)?;
        launch!(m.program, "finish_sum", m.grids.vectors(1), parts, grid.blocks.0, at)?;
        let mut losses = vec![0f32; count + 1];
        m.device.download(at - 4 * count as u64, &mut losses)?;
        let squares = losses.pop().unwrap_or(0.0);
        Ok((losses, f64::from(squares).sqrt()))
    }

    /// One AdamW update by the gradients: of every parameter, or of this engine's share.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn update(&mut self, step: AdamwStep) -> Result<()> {
        let m = &self.model;
        m.device.enter()?;
        m.weights_changed();
        let (decayed, share) = (m.decayed(), m.share());
        let with_decay = (share.start, share.end.min(decayed), step.decay);
        let without = (share.start.max(decayed), share.end, 0.0);
        for (start, end, decay) in [with_decay, without].into_iter().filter(|(s, e, _)| s < e) {
            let (first, second) = m.moments(start)?;
            launch!(
                m.program,
                "adamw",
                m.grids.quads(end - start),
                m.trained_weight(start),
                first,
                second,
                m.gradient(start)?,
                m.bf16_copy(start),
                (end - start) as i64,
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
        self.model.device.wait()
    }

    /// Bytes of device memory: free and in all.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.model.device.memory()
    }

    /// Kernels and matrix products queued since the last call.
    pub fn take_launches(&self) -> u64 {
        self.model.program.profile.borrow_mut().take_launches()
    }

    /// Measures the time of every kernel from now on, or stops doing so. Costs time itself.
    pub fn time_kernels(&self, on: bool) {
        self.model.program.profile.borrow_mut().time(on);
    }

    /// Time by kernel since the last call; waits for the GPU.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn take_times(&self) -> Result<BTreeMap<&'static str, KernelTime>> {
        self.model.device.wait()?;
        self.model.program.profile.borrow_mut().take()
    }

    /// Room for the losses of `n` more targets; their address. Losses that are there are kept.
    fn room_for_losses(&mut self, n: usize) -> Result<u64> {
        let device = &self.model.device;
        let needed = 4 * (self.losses_len + n);
        if self.losses.held() < needed {
            let mut kept = vec![0f32; self.losses_len];
            if self.losses_len > 0 {
                let at = self.losses.room(device, 4 * self.losses_len, "losses")?;
                device.download(at, &mut kept)?;
            }
            let at = self.losses.room(device, 2 * needed, "losses")?;
            device.upload(at, &kept)?;
        }
        let start = self.losses.room(device, needed, "losses")?;
        let at = start + 4 * self.losses_len as u64;
        self.losses_len += n;
        Ok(at)
    }

    fn packed(&self, batch: &Batch) -> Result<Packed> {
        let shape = &self.model.shape;
        Packed::new(batch, shape.vocab_size, shape.adapters.as_ref())
    }

    /// Uploads the index arrays, makes room for activations and for the positions of a batch.
    pub(crate) fn prepare(&mut self, packed: &Packed, training: bool) -> Result<Places> {
        self.tabulate_rope(packed.positions_end)?;
        let m = &self.model;
        let sizes = Sizes {
            tokens: packed.tokens,
            targets: packed.targets_len,
            taught: packed.is_taught(),
            pieces: packed.pieces.len,
            parts: m.grids.parts(),
        };
        let bytes = Places::new(&m.shape, &m.options, sizes, 0, training).bytes;
        let start = self.activations.room(&m.device, bytes, "activations")?;
        let mut places = Places::new(&m.shape, &m.options, sizes, start, training);
        let indices = 4 * packed.values.len();
        places.indices = self.indices.room(&m.device, indices, "index arrays")?;
        m.device.upload(places.indices, &packed.values)?;
        places.rope = self.rope.room(&m.device, 0, "rotary tables")?;
        Ok(places)
    }

    /// Cosines and sines up to a position; they stay on the GPU.
    fn tabulate_rope(&mut self, positions: usize) -> Result<()> {
        if positions <= self.rope_positions {
            return Ok(());
        }
        let positions = positions.next_power_of_two().max(512);
        let m = &self.model;
        let half = m.shape.head_dim / 2;
        let mut table = vec![0f32; positions * 2 * half];
        for (position, row) in table.chunks_mut(2 * half).enumerate() {
            for (i, frequency) in m.shape.inv_freq.iter().enumerate() {
                // an fp32 product as in transformers, so that large positions round the same way
                let angle = f64::from(position as f32 * frequency);
                row[i] = angle.cos() as f32;
                row[half + i] = angle.sin() as f32;
            }
        }
        let at = self.rope.room(&m.device, 4 * table.len(), "rotary tables")?;
        m.device.upload(at, &table)?;
        self.rope_positions = positions;
        Ok(())
    }
}
