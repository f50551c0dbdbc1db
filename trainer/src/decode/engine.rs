//! A model ready to decode: runs forward passes behind a cache and predicts tokens at single
//! positions.
//!
//! In: token ids and positions of a few new tokens per row. Out: hidden states, and for requested
//! positions the most probable token with its probability ([`Prediction`]). Only those positions go
//! through the output head, and only two numbers per position are copied back to the host.

use burn::prelude::*;

use crate::compute::tensor_io::download;
use crate::compute::{ComputeDtype, ComputePlan, DeviceKind, EngineChoice, WeightFormat, memory};
use crate::decode::branches::placed_branches;
use crate::decode::cached::{CacheId, KvCache, Order, Pass, Span, placed};
use crate::decode::column_major::column_major;
use crate::decode::cpu::{self, CpuModel};
use crate::decode::placed::{Branches, of_branches, of_spans};
use crate::decode::verify::options::TokenCost;
use crate::decode::{Decided, Passes};
use crate::error::{Error, Result};
use crate::kernels::cast::{cast_to, to_f32};
use crate::kernels::most_probable::{MostProbable, most_probable};
use crate::kernels::{linear, rms_norm};
use crate::model::{Decoder, ParamKind, Weights};
use crate::native::{Native, NativeOptions};

/// Initial capacity of the cache in tokens per row. It doubles when it is full, so that a large
/// limit on new tokens costs nothing until the text is that long.
const INITIAL_POSITIONS: usize = 512;

/// What a further token of a pass costs on Burn's tensors on the CPU (docs/decode.md).
const BURN_TOKEN_COST: f64 = 0.1;

/// The most probable token at one position.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Prediction {
    /// Token id.
    pub token: i64,
    /// Its probability under softmax over the vocabulary.
    pub probability: f32,
}

impl Prediction {
    /// How a token of this prediction was decided; the pass is counted in `passes` already.
    pub(super) fn in_pass(self, passes: Passes) -> Decided {
        Decided { pass: passes.total(), probability: self.probability }
    }
}

/// A model that decodes.
pub(crate) struct Engine {
    decoder: Decoder,
    compute: ComputePlan,
    backend: Backend,
}

/// What computes the passes.
enum Backend {
    Burn(Box<BurnBackend>),
    Cpu(Box<CpuModel>),
    /// The engine, and the cache that it has made room for.
    Native(Native, Option<CacheId>),
}

/// Weights in the compute dtype, with what decoding keeps between passes.
struct BurnBackend {
    weights: Weights,
    /// The output head, `[vocab_size, hidden_size]`.
    head: Tensor<2>,
    /// The last pass, used again while the same block is run many times.
    last: Option<Pass>,
}

/// Hidden states of a pass before the final norm, `[B·S, hidden_size]`.
pub(super) enum Hidden {
    Burn(Tensor<2>),
    /// On the native engine, until its next pass.
    Native,
    /// On the CPU without Burn, until the next pass.
    Cpu,
}

impl Engine {
    /// As [`Engine::open`], with the usual choices.
    #[cfg(test)]
    pub(crate) fn new(decoder: Decoder, weights: Weights, compute: ComputePlan) -> Result<Self> {
        Self::open(decoder, weights, compute, EngineChoice::Auto, WeightFormat::Auto)
    }

    /// An engine for a model: on a GPU, or on the CPU without Burn where that can be, with weights
    /// in `format`, or on Burn's tensors.
    ///
    /// # Errors
    /// [`Error::Usage`] for a format that cannot be used here.
    pub(crate) fn open(
        decoder: Decoder,
        weights: Weights,
        compute: ComputePlan,
        engine: EngineChoice,
        format: WeightFormat,
    ) -> Result<Self> {
        match Self::without_burn(&decoder, &compute, engine) {
            Ok(()) => {
                let model = Box::new(CpuModel::new(&decoder, weights, format)?);
                Ok(Engine { decoder, compute, backend: Backend::Cpu(model) })
            }
            Err(reason) if format != WeightFormat::Auto => Err(Error::Usage(format!(
                "weights in {format} (--weights) are for decoding on the CPU without Burn, which is not possible here: {reason}; leave --weights out"
            ))),
            Err(_) => Self::with_tensors(decoder, weights, compute),
        }
    }

    /// Whether the CPU decodes a model without Burn, or why not.
    fn without_burn(
        decoder: &Decoder,
        compute: &ComputePlan,
        engine: EngineChoice,
    ) -> std::result::Result<(), String> {
        if compute.native || compute.device.kind != DeviceKind::Cpu {
            return Err(format!("the model is decoded on {}", compute.device.name));
        }
        if compute.dtype != ComputeDtype::Fp32 {
            return Err(format!("activations are {} (--dtype)", compute.dtype));
        }
        if engine == EngineChoice::Burn {
            return Err("Burn was asked for (--engine burn)".into());
        }
        cpu::unsupported(decoder).map_or(Ok(()), Err)
    }

    /// An engine on Burn's tensors or a GPU. Matrices are converted to the plan's dtype once, after
    /// those of a model with BitLinear have been made ternary; norms stay in fp32.
    fn with_tensors(mut decoder: Decoder, weights: Weights, compute: ComputePlan) -> Result<Self> {
        if compute.native {
            let options = NativeOptions::decoding(compute.dtype);
            let mut native = Native::open(compute.cuda_index(), &decoder, options)?;
            native.set_weights(&weights)?;
            return Ok(Engine { decoder, compute, backend: Backend::Native(native, None) });
        }
        let ternary = decoder.cfg.quantization.is_some()
            && decoder.quant_lambda >= 1.0
            && !decoder.ternary_weights;
        let by_columns =
            compute.device.kind == DeviceKind::Cpu && compute.dtype == ComputeDtype::Fp32;
        let (device, dtype) = (compute.device.device.clone(), compute.dtype.burn());
        let params = &decoder.params;
        let mut ready = Vec::with_capacity(params.specs.len());
        let mut head = None;
        let mut weights = weights.0;
        let of_adapters = weights.split_off(params.specs.len().min(weights.len()));
        for (i, (mut tensor, spec)) in weights.into_iter().zip(&params.specs).enumerate() {
            if spec.may_quantize && ternary {
                tensor = linear::ternary_weight(tensor);
            }
            if spec.kind != ParamKind::Norm {
                tensor = cast_to(tensor, dtype);
            }
            if i == params.lm_head {
                head =
                    Some(if by_columns { column_major(&tensor, &device)? } else { tensor.clone() });
            }
            if by_columns && spec.kind == ParamKind::Matrix {
                tensor = column_major(&tensor, &device)?;
            }
            ready.push(tensor);
        }
        ready.extend(of_adapters.into_iter().map(|tensor| cast_to(tensor, dtype)));
        let head = head.ok_or_else(|| Error::Model("the model has no output head".into()))?;
        decoder.ternary_weights |= ternary;
        let burn = BurnBackend { weights: Weights(ready), head, last: None };
        Ok(Engine { decoder, compute, backend: Backend::Burn(Box::new(burn)) })
    }

    /// Computes attention by one masked product, as on devices without tiles, even on the CPU in
    /// fp32. Tests compare the two.
    #[cfg(test)]
    pub(crate) fn without_tiles(mut self) -> Result<Self> {
        self.compute = self.compute.with_attention(crate::compute::AttentionChoice::Dense)?;
        if let Backend::Burn(burn) = &mut self.backend {
            burn.last = None;
        }
        Ok(self)
    }

    /// Runs `ids` `[B·S]`, S tokens in each of the B `spans`.
    pub(super) fn pass(
        &mut self,
        ids: &[i64],
        spans: &[Span],
        order: Order,
        cache: &mut KvCache,
    ) -> Result<Hidden> {
        let len = ids.len() / spans.len().max(1);
        let needed = spans.iter().map(|span| span.visible.max(span.start + len)).max().unwrap_or(0);
        self.fit(needed, cache)?;
        let burn = match &mut self.backend {
            Backend::Burn(burn) => burn,
            Backend::Cpu(model) => {
                model.pass(ids, of_spans(spans, len, order), cache);
                return Ok(Hidden::Cpu);
            }
            Backend::Native(native, open) => {
                open_native(native, open, cache)?;
                native.run_cached(ids, placed(spans, len, order, cache))?;
                return Ok(Hidden::Native);
            }
        };
        let pass = match burn.last.take() {
            Some(last) if last.is(spans, len, order, cache) => last,
            _ => Pass::new(&self.decoder, spans.to_vec(), len, order, cache, &self.compute)?,
        };
        let ids = Tensor::<1, Int>::from_data(
            TensorData::new(ids.to_vec(), [ids.len()]),
            &self.compute.device.device,
        );
        let hidden = self.decoder.forward_cached(&burn.weights, ids, &pass, cache);
        burn.last = Some(pass);
        Ok(Hidden::Burn(hidden))
    }

    /// Runs `ids` `[T]`, those of the `rows` one after the other, with adapters at the masks. All
    /// rows have as many tokens, unless [`Engine::takes_ragged_passes`].
    ///
    /// # Errors
    /// As for [`Engine::pass`].
    pub(super) fn pass_branches(
        &mut self,
        ids: &[i64],
        rows: &[Branches],
        cache: &mut KvCache,
    ) -> Result<Hidden> {
        self.fit(rows.iter().map(|row| row.start + row.len()).max().unwrap_or(0), cache)?;
        match &mut self.backend {
            Backend::Burn(burn) => {
                let pass = Pass::of_branches(&self.decoder, rows, cache, &self.compute)?;
                let ids = TensorData::new(ids.to_vec(), [ids.len()]);
                let ids = Tensor::<1, Int>::from_data(ids, &self.compute.device.device);
                let hidden = self.decoder.forward_cached(&burn.weights, ids, &pass, cache);
                Ok(Hidden::Burn(hidden))
            }
            Backend::Cpu(model) => {
                model.pass(ids, of_branches(rows), cache);
                Ok(Hidden::Cpu)
            }
            Backend::Native(native, open) => {
                open_native(native, open, cache)?;
                let (placed, masks) = placed_branches(rows, cache.positions());
                native.run_gated(ids, placed, &masks)?;
                Ok(Hidden::Native)
            }
        }
    }

    /// Whether the rows of a pass with masks may have different numbers of tokens.
    pub(super) fn takes_ragged_passes(&self) -> bool {
        !matches!(self.backend, Backend::Burn(_))
    }

    /// Whether the model has adapters that act on mask tokens alone.
    pub(super) fn has_gate(&self) -> bool {
        self.decoder.params.lora.as_ref().is_some_and(|lora| lora.shape.gated)
    }

    /// What a further token of a pass costs.
    pub(super) fn token_cost(&self) -> TokenCost {
        let of_burn = |share| TokenCost { share, together: 1 };
        match &self.backend {
            Backend::Cpu(model) => model.token_cost(),
            Backend::Burn(_) | Backend::Native(..) => match self.compute.device.kind {
                DeviceKind::Cpu => of_burn(BURN_TOKEN_COST),
                DeviceKind::Cuda(_) | DeviceKind::Wgpu => of_burn(0.0),
            },
        }
    }

    /// Makes the cache hold `needed` tokens a row.
    fn fit(&mut self, needed: usize, cache: &mut KvCache) -> Result<()> {
        if needed <= cache.positions() {
            return Ok(());
        }
        let positions = cache.next_size(needed);
        self.check_room(cache.rows(), positions)?;
        cache.grow(positions);
        if let Backend::Native(native, Some(open)) = &mut self.backend
            && *open == cache.id()
        {
            native.open_cache(cache.rows(), positions, true)?;
        }
        Ok(())
    }

    /// A new, empty cache for rows of at most `longest` tokens.
    pub(super) fn new_cache(&self, rows: usize, longest: usize) -> KvCache {
        KvCache::new(rows, longest.min(INITIAL_POSITIONS), longest)
    }

    /// Refuses a cache that the host's memory cannot hold. While the cache grows, the old and the
    /// new tensors of one layer exist at the same time.
    fn check_room(&self, rows: usize, positions: usize) -> Result<()> {
        let c = &self.decoder.cfg;
        let token = 2 * c.num_key_value_heads * c.head_dim * self.compute.dtype.size();
        let bytes = (rows * positions).saturating_mul(token * (c.num_hidden_layers + 1));
        let free = memory::available_bytes();
        if self.compute.device.kind != DeviceKind::Cpu || bytes / 2 < free {
            return Ok(());
        }
        let gib = |n: usize| n as f64 / (1u64 << 30) as f64;
        Err(Error::Device(format!(
            "keys and values of {rows} rows of {positions} tokens need {:.1} GiB, of which half is held already; {:.1} GiB of memory are free; lower --max-new-tokens or --batch-size",
            gib(bytes),
            gib(free)
        )))
    }

    /// Predicts the next token at the rows `at` of `hidden`; the token `never` is not predicted.
    pub(super) fn predict(
        &mut self,
        hidden: &Hidden,
        at: &[usize],
        never: Option<i64>,
    ) -> Result<Vec<Prediction>> {
        if at.is_empty() {
            return Ok(Vec::new());
        }
        let predictions = match (&mut self.backend, hidden) {
            (Backend::Native(native, _), Hidden::Native) => native
                .predict(at, never)?
                .into_iter()
                .map(|(token, probability)| Prediction { token, probability })
                .collect(),
            (Backend::Cpu(model), Hidden::Cpu) => model
                .predict(at, never)
                .into_iter()
                .map(|(token, probability)| Prediction { token, probability })
                .collect(),
            (Backend::Burn(burn), Hidden::Burn(hidden)) => {
                burn.predict(&self.decoder, &self.compute, hidden.clone(), at, never)?
            }
            _ => unreachable!("a pass and its prediction are of one backend"),
        };
        if predictions.iter().any(|prediction| prediction.probability.is_nan()) {
            return Err(not_finite());
        }
        Ok(predictions)
    }

    /// Logits in fp32 after the rows `at` of `hidden`: `[at.len(), vocab_size]`, on the host.
    pub(super) fn logits(&mut self, hidden: &Hidden, at: &[usize]) -> Result<Vec<f32>> {
        match (&mut self.backend, hidden) {
            (Backend::Native(native, _), Hidden::Native) => native.cached_logits(at),
            (Backend::Cpu(model), Hidden::Cpu) => Ok(model.logits(at)),
            (Backend::Burn(burn), Hidden::Burn(hidden)) => {
                download(&burn.logits(&self.decoder, &self.compute, hidden.clone(), at))
            }
            _ => unreachable!("a pass and its logits are of one backend"),
        }
    }

    /// Tokens in the vocabulary.
    pub(super) fn vocab_size(&self) -> usize {
        self.decoder.cfg.vocab_size
    }

    /// Refuses a prompt that cannot be decoded: an empty one, and one with ids outside the
    /// vocabulary or with the mask token.
    pub(super) fn check(&self, prompt: &[i64], mask: Option<i64>) -> Result<()> {
        let vocab = self.decoder.cfg.vocab_size;
        let in_vocabulary = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocab);
        let wrong = |what: String| Err(Error::Usage(what));
        if let Some(mask) = mask.filter(|mask| !in_vocabulary(*mask)) {
            return wrong(format!(
                "the mask token id is {mask}, but the model has {vocab} token ids (0 to {})",
                vocab - 1
            ));
        }
        if prompt.is_empty() {
            return wrong(
                "the prompt has no tokens; decoding needs at least one to start from".into(),
            );
        }
        if let Some((at, id)) = prompt.iter().enumerate().find(|(_, id)| !in_vocabulary(**id)) {
            return wrong(format!(
                "token {at} of the prompt is id {id}, but the model has {vocab} token ids (0 to {})",
                vocab - 1
            ));
        }
        if let Some(at) = prompt.iter().position(|id| Some(*id) == mask) {
            return wrong(format!(
                "token {at} of the prompt is the mask token ({}); a prompt must be plain text",
                prompt[at]
            ));
        }
        Ok(())
    }
}

/// The error for logits that are not finite.
pub(super) fn not_finite() -> Error {
    Error::Numeric(
        "the model's logits hold NaN or inf; its weights are damaged or overflow in this precision"
            .into(),
    )
}

/// Makes room on the native engine for a cache, unless it has it already.
fn open_native(native: &mut Native, open: &mut Option<CacheId>, cache: &mut KvCache) -> Result<()> {
    if *open == Some(cache.id()) {
        return Ok(());
    }
    cache.open_once()?;
    *open = None;
    native.open_cache(cache.rows(), cache.positions(), false)?;
    *open = Some(cache.id());
    Ok(())
}

impl BurnBackend {
    /// Logits in fp32 after the rows `at` of `hidden` `[B·S, hidden_size]`.
    fn logits(
        &self,
        decoder: &Decoder,
        compute: &ComputePlan,
        hidden: Tensor<2>,
        at: &[usize],
    ) -> Tensor<2> {
        let rows: Vec<i64> = at.iter().map(|&row| row as i64).collect();
        let rows = TensorData::new(rows, [at.len()]);
        let rows = Tensor::<1, Int>::from_data(rows, &compute.device.device);
        let norm = &self.weights[decoder.params.norm];
        let hidden = rms_norm::composed(hidden.select(0, rows), norm, decoder.cfg.rms_norm_eps);
        to_f32(linear::linear(hidden, &self.head, None))
    }

    /// The most probable token at the rows `at` of `hidden` `[B·S, hidden_size]`.
    fn predict(
        &self,
        decoder: &Decoder,
        compute: &ComputePlan,
        hidden: Tensor<2>,
        at: &[usize],
        never: Option<i64>,
    ) -> Result<Vec<Prediction>> {
        let logits = self.logits(decoder, compute, hidden, at);
        let best = most_probable(logits, never)?.into_iter();
        let prediction = |MostProbable { token, probability }| Prediction { token, probability };
        Ok(best.map(prediction).collect())
    }
}
