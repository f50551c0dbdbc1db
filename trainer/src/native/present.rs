//! The engine of a build with the feature `native`, as ordinary builds are.

use burn::prelude::*;
use burn::tensor::DType;
use dlm_engine::{
    CachedPass, Engine, KernelTime, LayerRole, Options, Precision, Role, Shape, Tile,
};

use super::{KernelMs, NativeOptions};
use crate::attention;
use crate::compute::ComputeDtype;
use crate::compute::tensor_io::download;
use crate::diffusion::Batch;
use crate::error::{Error, Result};
use crate::kernels::{Activation, AdamwStep};
use crate::model::{Decoder, Gradients, ModelConfig, Params, Weights};
use crate::optim::State;

/// Logits that exist at one time unless a chunk is given, bytes.
const LOGITS_BYTES: usize = 2 << 30;

/// A decoder on the engine.
pub(crate) struct Native {
    engine: Engine,
    params: Params,
    /// In the order of the parameters.
    roles: Vec<Role>,
}

fn device_error(e: dlm_engine::Error) -> Error {
    Error::Device(e.to_string())
}

impl Native {
    /// An engine with zero weights on the GPU with this CUDA index.
    pub(crate) fn open(index: usize, decoder: &Decoder, options: NativeOptions) -> Result<Self> {
        let cfg = &decoder.cfg;
        let options = engine_options(cfg, options);
        let engine = Engine::new(index, shape(cfg), options).map_err(device_error)?;
        Ok(Native { engine, params: decoder.params.clone(), roles: roles(&decoder.params) })
    }

    /// Copies weights from the host, in the order of the parameters.
    pub(crate) fn set_weights(&mut self, weights: &Weights) -> Result<()> {
        for (role, tensor) in self.roles.iter().zip(&weights.0) {
            self.engine.set_weights(*role, &download(tensor)?).map_err(device_error)?;
        }
        Ok(())
    }

    /// Random matrices and tables, drawn on the GPU; norms are one, biases zero.
    pub(crate) fn draw_weights(&mut self, std: f32, seed: u64) -> Result<()> {
        use crate::model::ParamKind as K;
        for (role, spec) in self.roles.iter().zip(&self.params.specs) {
            match spec.kind {
                K::Matrix | K::Embedding => self.engine.draw_weights(*role, std, seed),
                K::Norm => self.engine.set_weights(*role, &vec![1.0; spec.numel()]),
                K::Bias => self.engine.set_weights(*role, &vec![0.0; spec.numel()]),
            }
            .map_err(device_error)?;
        }
        Ok(())
    }

    /// Copies the optimizer's moments from the host.
    pub(crate) fn set_state(&mut self, state: &[State]) -> Result<()> {
        for (role, state) in self.roles.iter().zip(state) {
            let State::Adam(first, second) = state else {
                return Err(Error::Mismatch(
                    "the optimizer's state is Muon's, which the native engine does not know".into(),
                ));
            };
            let (first, second) = (download(first)?, download(second)?);
            self.engine.set_moments(*role, &first, &second).map_err(device_error)?;
        }
        Ok(())
    }

    /// The weights, as tensors in host memory.
    pub(crate) fn weights(&self) -> Result<Weights> {
        let tensor = |(i, role): (usize, &Role)| -> Result<Tensor<2>> {
            Ok(self.on_host(i, self.engine.weights(*role).map_err(device_error)?))
        };
        Ok(Weights(self.roles.iter().enumerate().map(tensor).collect::<Result<_>>()?))
    }

    /// The gradients, as tensors in host memory.
    pub(crate) fn gradients(&self) -> Result<Gradients> {
        let gradient = |(i, role): (usize, &Role)| -> Result<Option<Tensor<2>>> {
            Ok(Some(self.on_host(i, self.engine.gradients(*role).map_err(device_error)?)))
        };
        Ok(Gradients(self.roles.iter().enumerate().map(gradient).collect::<Result<_>>()?))
    }

    /// The optimizer's moments, as tensors in host memory.
    pub(crate) fn state(&self) -> Result<Vec<State>> {
        let state = |(i, role): (usize, &Role)| -> Result<State> {
            let (first, second) = self.engine.moments(*role).map_err(device_error)?;
            Ok(State::Adam(self.on_host(i, first), self.on_host(i, second)))
        };
        self.roles.iter().enumerate().map(state).collect()
    }

    fn on_host(&self, i: usize, values: Vec<f32>) -> Tensor<2> {
        let shape = self.params.specs[i].shape2();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }

    /// How far BitLinear rounds from now on, 0 to 1.
    pub(crate) fn set_quantization(&mut self, lambda: f64) {
        self.engine.set_quantization(lambda as f32);
    }

    pub(crate) fn clear_gradients(&mut self) -> Result<()> {
        self.engine.clear_gradients().map_err(device_error)
    }

    /// Queues a forward and a backward pass; `scale` is 1 / counted targets of the step.
    pub(crate) fn pass(&mut self, batch: &Batch, scale: f64) -> Result<()> {
        self.engine.pass(&convert(batch), scale as f32).map_err(device_error)
    }

    /// Waits for the passes: the sum of their cross-entropies and the gradients' L2 norm.
    pub(crate) fn finish(&mut self) -> Result<(f64, f64)> {
        self.engine.finish().map_err(device_error)
    }

    /// Sum of the cross-entropies, without gradients.
    pub(crate) fn loss_sum(&mut self, batch: &Batch) -> Result<f64> {
        self.engine.loss_sum(&convert(batch)).map_err(device_error)
    }

    /// Room for `positions` keys and values in each of `rows` rows; with `keep` what they held.
    pub(crate) fn open_cache(&mut self, rows: usize, positions: usize, keep: bool) -> Result<()> {
        self.engine.open_cache(rows, positions, keep).map_err(device_error)
    }

    /// Runs new tokens behind the cache: their ids, and their positions, slots and tiles.
    pub(crate) fn run_cached(
        &mut self,
        ids: &[i64],
        (positions, slots, tiles): (Vec<i32>, Vec<i32>, Vec<attention::Tile>),
    ) -> Result<()> {
        let pass = CachedPass {
            input_ids: ids.iter().map(|id| *id as i32).collect(),
            positions,
            slots,
            tiles: tiles.iter().map(convert_tile).collect(),
        };
        self.engine.run_cached(&pass).map_err(device_error)
    }

    /// The most probable tokens after the tokens `at` of the last pass, without `never`, and their
    /// probabilities.
    pub(crate) fn predict(&mut self, at: &[usize], never: Option<i64>) -> Result<Vec<(i64, f32)>> {
        let at: Vec<i32> = at.iter().map(|row| *row as i32).collect();
        let never = never.and_then(|id| i32::try_from(id).ok());
        let best = self.engine.predict(&at, never).map_err(device_error)?;
        Ok(best.into_iter().map(|(token, p)| (i64::from(token), p)).collect())
    }

    /// Logits after the tokens `at` of the last pass, `[at.len(), vocab_size]`.
    pub(crate) fn cached_logits(&mut self, at: &[usize]) -> Result<Vec<f32>> {
        let at: Vec<i32> = at.iter().map(|row| *row as i32).collect();
        self.engine.cached_logits(&at).map_err(device_error)
    }

    /// Logits of every stream position, `[rows · len, vocab_size]`.
    pub(crate) fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.engine.logits(&convert(batch)).map_err(device_error)
    }

    /// One AdamW update; norms and biases have no weight decay.
    pub(crate) fn update(&mut self, s: AdamwStep) -> Result<()> {
        let step = dlm_engine::AdamwStep {
            lr: s.lr,
            beta1: s.beta1,
            beta2: s.beta2,
            eps: s.eps,
            decay: s.decay,
            clip: s.clip,
            correction1: s.correction1,
            correction2: s.correction2,
        };
        self.engine.update(step).map_err(device_error)
    }

    /// Bytes of the GPU's memory that are taken, by whomever.
    pub(crate) fn memory_in_use(&self) -> Result<usize> {
        self.engine.memory().map(|(free, all)| all - free).map_err(device_error)
    }

    /// Kernels and products queued since the last call.
    pub(crate) fn take_launches(&self) -> u64 {
        self.engine.take_launches()
    }

    pub(crate) fn time_kernels(&self, on: bool) {
        self.engine.time_kernels(on);
    }

    /// Launches, milliseconds and operations of every kernel since the last call.
    pub(crate) fn take_times(&self) -> Result<Vec<KernelMs>> {
        let kernel = |(name, time): (&str, KernelTime)| KernelMs {
            name: name.to_string(),
            launches: time.launches,
            ms: time.ms,
            tflops_per_s: (time.flop > 0.0).then(|| time.flop / time.ms / 1e9),
        };
        let times = self.engine.take_times().map_err(device_error)?;
        Ok(times.into_iter().map(kernel).collect())
    }
}

/// Bytes of memory that are free on a GPU; none where it cannot be opened.
pub(crate) fn free_memory(index: usize) -> Option<usize> {
    dlm_engine::free_memory(index).ok()
}

/// Bytes of device memory that training takes: fixed, and for passes over `tokens` tokens with
/// `targets` targets; an upper bound.
pub(crate) fn memory_need(
    cfg: &ModelConfig,
    options: NativeOptions,
    tokens: usize,
    targets: usize,
) -> (usize, usize) {
    let need = dlm_engine::memory_need(&shape(cfg), &engine_options(cfg, options), tokens, targets);
    (need.fixed, need.activations)
}

fn engine_options(cfg: &ModelConfig, options: NativeOptions) -> Options {
    let row_bytes = options.dtype.size() * cfg.vocab_size.next_multiple_of(64);
    Options {
        precision: match options.dtype {
            ComputeDtype::Bf16 => Precision::Bf16,
            ComputeDtype::Fp32 => Precision::Fp32,
        },
        activation_checkpointing: options.activation_checkpointing,
        logits_bytes: options.loss_chunk.map_or(LOGITS_BYTES, |n| n.max(1) * row_bytes),
        training: options.training,
    }
}

fn shape(cfg: &ModelConfig) -> Shape {
    Shape {
        vocab_size: cfg.vocab_size,
        hidden_size: cfg.hidden_size,
        intermediate_size: cfg.intermediate_size,
        num_hidden_layers: cfg.num_hidden_layers,
        num_attention_heads: cfg.num_attention_heads,
        num_key_value_heads: cfg.num_key_value_heads,
        head_dim: cfg.head_dim,
        rms_norm_eps: cfg.rms_norm_eps,
        inv_freq: cfg.inv_freq().iter().map(|f| *f as f32).collect(),
        relu2: cfg.activation == Activation::Relu2,
        qkv_bias: cfg.qkv_bias,
        qk_norm: cfg.qk_norm,
        tie_word_embeddings: cfg.tie_word_embeddings,
        sub_norms: cfg.sub_norms,
        bit_linear: cfg.quantization.is_some(),
    }
}

/// What each parameter of the table is to the engine.
fn roles(params: &Params) -> Vec<Role> {
    let mut roles = vec![Role::Embedding; params.specs.len()];
    roles[params.norm] = Role::FinalNorm;
    if params.lm_head != params.embed_tokens {
        roles[params.lm_head] = Role::Head;
    }
    for (i, layer) in params.layers.iter().enumerate() {
        let mut set = |index: Option<usize>, role| {
            if let Some(index) = index {
                roles[index] = Role::Layer(i, role);
            }
        };
        set(Some(layer.input_layernorm), LayerRole::InputNorm);
        set(Some(layer.q_proj.weight), LayerRole::Query);
        set(Some(layer.k_proj.weight), LayerRole::Key);
        set(Some(layer.v_proj.weight), LayerRole::Value);
        set(layer.q_proj.bias, LayerRole::QueryBias);
        set(layer.k_proj.bias, LayerRole::KeyBias);
        set(layer.v_proj.bias, LayerRole::ValueBias);
        set(layer.q_norm, LayerRole::QueryNorm);
        set(layer.k_norm, LayerRole::KeyNorm);
        set(layer.attn_sub_norm, LayerRole::OutputNorm);
        set(layer.ffn_sub_norm, LayerRole::DownNorm);
        set(Some(layer.o_proj.weight), LayerRole::Output);
        set(Some(layer.post_attention_layernorm), LayerRole::MlpNorm);
        set(Some(layer.gate_proj.weight), LayerRole::Gate);
        set(Some(layer.up_proj.weight), LayerRole::Up);
        set(Some(layer.down_proj.weight), LayerRole::Down);
    }
    roles
}

fn convert_tile(tile: &attention::Tile) -> Tile {
    Tile {
        query: tile.query(),
        len: tile.len(),
        prefix: (tile.prefix().start, tile.prefix().len),
        own: (tile.own().start, tile.own().len),
        causal: tile.is_causal(),
    }
}

fn convert(batch: &Batch) -> dlm_engine::Batch {
    let tiles = batch.tiles.iter().filter(|tile| !tile.is_empty()).map(convert_tile);
    dlm_engine::Batch {
        input_ids: batch.ids(),
        positions: batch.positions(),
        tiles: tiles.collect(),
        predicted_at: batch.targets.iter().map(|t| t.at as i32).collect(),
        targets: batch.targets.iter().map(|t| t.id).collect(),
    }
}
