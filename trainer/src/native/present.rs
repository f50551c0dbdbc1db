//! The engine of a build with the feature `native`, as ordinary builds are.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::DType;
use dlm_engine::{CachedPass, Engine, KernelTime, Options, Role};

use super::convert::{
    Reordered, convert, convert_tile, engine_options, moved, noised_first, reordered, roles, shape,
};
use super::followers::{Answer, Followers, device_error};
use super::given::{Given, losses_of};
use super::{KernelMs, NativeOptions};
use crate::attention;
use crate::compute::tensor_io::download;
use crate::diffusion::{Batch, Losses, Scored};
use crate::error::{Error, Result};
use crate::kernels::AdamwStep;
use crate::kernels::most_probable::MostProbable;
use crate::model::{Decoder, Gradients, ParamSpec, Params, Weights};
use crate::optim::State;

/// A decoder on the engine.
pub(crate) struct Native {
    /// On the first GPU.
    engine: Engine,
    /// On the others, in training.
    followers: Option<Followers>,
    /// Passes of a step that the followers have not answered yet.
    running: Vec<Answer<()>>,
    /// Micro-batches of the step so far.
    given: Given,
    /// Share of the divergence from the source in the loss, where a batch has teachers.
    distill: f64,
    params: Params,
    /// In the order of the parameters.
    roles: Vec<Role>,
    /// Where the tokens of the last cached pass are, if they were put in another order.
    place: Option<Vec<usize>>,
}

impl Native {
    /// An engine with zero weights on the GPU with this CUDA index.
    pub(crate) fn open(index: usize, decoder: &Decoder, options: NativeOptions) -> Result<Self> {
        let distill = options.distill;
        let options = engine_options(&decoder.cfg, options);
        let options = Options { share: dlm_engine::Share::WHOLE, ..options };
        let engine = Engine::new(index, shape(decoder), options).map_err(device_error)?;
        let (params, roles) = (decoder.params.clone(), roles(&decoder.params));
        Ok(Native {
            engine,
            followers: None,
            running: Vec::new(),
            given: Given::default(),
            distill,
            params,
            roles,
            place: None,
        })
    }

    /// Engines with zero weights on several GPUs, that train one model together: micro-batches of a
    /// step go to them in turn, and each holds a part of the optimizer's state.
    pub(crate) fn open_team(
        indices: &[usize],
        decoder: &Decoder,
        options: NativeOptions,
    ) -> Result<Self> {
        let [first, others @ ..] = indices else {
            return Err(Error::Device("no GPU was named".into()));
        };
        if others.is_empty() {
            return Native::open(*first, decoder, options);
        }
        let (shape, roles) = (shape(decoder), roles(&decoder.params));
        let distill = options.distill;
        let options = engine_options(&decoder.cfg, options);
        let of = indices.len();
        let own = Options { share: dlm_engine::Share { rank: 0, of }, ..options };
        let engine = Engine::new(*first, shape.clone(), own).map_err(device_error)?;
        let followers = Some(Followers::start(&engine, others, (&shape, options))?);
        let (running, given, params) = (Vec::new(), Given::default(), decoder.params.clone());
        Ok(Native { engine, followers, running, given, distill, params, roles, place: None })
    }

    /// Lets every engine do the same, and waits for all.
    fn on_all(
        &mut self,
        what: impl Fn(&mut Engine) -> dlm_engine::Result<()> + Clone + Send + 'static,
    ) -> Result<()> {
        let others = self.followers.as_ref().map(|f| f.ask_all(what.clone())).unwrap_or_default();
        let own = what(&mut self.engine).map_err(device_error);
        others.into_iter().try_for_each(Answer::wait)?;
        own
    }

    /// Copies weights from the host, in the order of the parameters.
    pub(crate) fn set_weights(&mut self, weights: &Weights) -> Result<()> {
        for (role, tensor) in self.roles.clone().into_iter().zip(&weights.0) {
            let values = Arc::new(download(tensor)?);
            self.on_all(move |engine| engine.set_weights(role, &values))?;
        }
        Ok(())
    }

    /// Random matrices and tables, drawn on the GPU; norms are one, biases zero.
    pub(crate) fn draw_weights(&mut self, std: f32, seed: u64) -> Result<()> {
        use crate::model::ParamKind as K;
        let specs = (0..self.roles.len()).map(|i| self.spec(i));
        let all = self.roles.iter().zip(specs);
        let all: Vec<_> = all.map(|(role, spec)| (*role, spec.kind, spec.numel())).collect();
        for (role, kind, numel) in all {
            if let Role::AdapterB(..) = role {
                // stays zero, as adapters start
                continue;
            }
            self.on_all(move |engine| match kind {
                K::Matrix | K::Embedding => engine.draw_weights(role, std, seed),
                K::Norm => engine.set_weights(role, &vec![1.0; numel]),
                K::Bias => engine.set_weights(role, &vec![0.0; numel]),
            })?;
        }
        Ok(())
    }

    /// Copies the optimizer's moments from the host.
    pub(crate) fn set_state(&mut self, state: &[State]) -> Result<()> {
        let trained = self.roles[self.params.trained()].to_vec();
        for (role, state) in trained.into_iter().zip(state) {
            let State::Adam(first, second) = state else {
                return Err(Error::Mismatch(
                    "the optimizer's state is Muon's, which the native engine does not know".into(),
                ));
            };
            let moments = Arc::new((download(first)?, download(second)?));
            self.on_all(move |engine| engine.set_moments(role, &moments.0, &moments.1))?;
        }
        Ok(())
    }

    /// Shape of parameter `i`, those of adapters behind the others.
    fn spec(&self, i: usize) -> &ParamSpec {
        let own = self.params.specs.len();
        match &self.params.lora {
            Some(lora) if i >= own => &lora.specs[i - own],
            _ => &self.params.specs[i],
        }
    }

    /// The weights, as tensors in host memory; instead of those that are not trained one zero each.
    pub(crate) fn weights(&self) -> Result<Weights> {
        let trained = self.params.trained();
        let tensor = |(i, role): (usize, &Role)| -> Result<Tensor<2>> {
            if !trained.contains(&i) {
                return Ok(Tensor::zeros([1, 1], (&Device::flex(), DType::F32)));
            }
            Ok(self.on_host(i, self.engine.weights(*role).map_err(device_error)?))
        };
        Ok(Weights(self.roles.iter().enumerate().map(tensor).collect::<Result<_>>()?))
    }

    /// The gradients, as tensors in host memory; of one engine alone.
    pub(crate) fn gradients(&self) -> Result<Gradients> {
        let trained = self.params.trained();
        let gradient = |(i, role): (usize, &Role)| -> Result<Option<Tensor<2>>> {
            if !trained.contains(&i) {
                return Ok(None);
            }
            Ok(Some(self.on_host(i, self.engine.gradients(*role).map_err(device_error)?)))
        };
        Ok(Gradients(self.roles.iter().enumerate().map(gradient).collect::<Result<_>>()?))
    }

    /// The optimizer's moments, as tensors in host memory.
    pub(crate) fn state(&self) -> Result<Vec<State>> {
        let state = |(i, role): (usize, &Role)| -> Result<State> {
            let role = *role;
            let mut parts = vec![self.engine.moments(role).map_err(device_error)?];
            if let Some(followers) = &self.followers {
                for answer in followers.ask_all(move |engine| engine.moments(role)) {
                    parts.push(answer.wait()?);
                }
            }
            let numel = self.spec(i).numel();
            let (mut first, mut second) = (vec![0.0; numel], vec![0.0; numel]);
            for (start, a, b) in parts {
                first[start..start + a.len()].copy_from_slice(&a);
                second[start..start + b.len()].copy_from_slice(&b);
            }
            Ok(State::Adam(self.on_host(i, first), self.on_host(i, second)))
        };
        let trained = self.params.trained();
        trained.map(|i| state((i, &self.roles[i]))).collect()
    }

    fn on_host(&self, i: usize, values: Vec<f32>) -> Tensor<2> {
        let shape = self.spec(i).shape2();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }

    fn is_gated(&self) -> bool {
        self.params.lora.as_ref().is_some_and(|lora| lora.shape.gated)
    }

    fn convert(&self, batch: &Batch) -> Result<dlm_engine::Batch> {
        let converted = match self.is_gated() {
            true => noised_first(batch)?.0,
            false => convert(batch),
        };
        Ok(dlm_engine::Batch { distill: self.distill as f32, ..converted })
    }

    /// How far BitLinear rounds from now on, 0 to 1.
    pub(crate) fn set_quantization(&mut self, lambda: f64) {
        self.engine.set_quantization(lambda as f32);
        if let Some(followers) = &self.followers {
            followers.ask_all(move |engine| {
                engine.set_quantization(lambda as f32);
                Ok(())
            });
        }
    }

    pub(crate) fn clear_gradients(&mut self) -> Result<()> {
        // passes of a step that was given up
        self.running.drain(..).for_each(|answer| drop(answer.wait()));
        self.given.clear();
        self.on_all(Engine::clear_gradients)
    }

    fn engines(&self) -> usize {
        1 + self.followers.as_ref().map_or(0, Followers::count)
    }

    /// Queues a forward and a backward pass, on each GPU in turn; `scale` is 1 / counted targets of
    /// the step.
    pub(crate) fn pass(&mut self, batch: &Batch, scale: f64) -> Result<()> {
        let turn = self.given.count() % self.engines();
        self.given.push(batch);
        let (batch, scale) = (self.convert(batch)?, scale as f32);
        match &self.followers {
            Some(followers) if turn > 0 => {
                let answer = followers.ask(turn - 1, move |engine| engine.pass(&batch, scale));
                self.running.push(answer);
                Ok(())
            }
            _ => self.engine.pass(&batch, scale).map_err(device_error),
        }
    }

    /// Waits for the passes: their losses and the gradients' L2 norm.
    pub(crate) fn finish(&mut self) -> Result<(Losses, f64)> {
        let Some(followers) = &self.followers else {
            let (losses, norm) = self.engine.finish().map_err(device_error)?;
            return Ok((self.given.losses((0, 1), &losses, self.distill), norm));
        };
        self.running.drain(..).try_for_each(Answer::wait)?;
        let waiting = followers.ask_all(|engine| engine.wait());
        self.engine.wait().map_err(device_error)?;
        waiting.into_iter().try_for_each(Answer::wait)?;
        // all gradients are whole from here on
        let peers = Arc::new(followers.peers.clone());
        let theirs = peers.clone();
        let adding = followers.ask_all(move |engine| engine.add_gradients(&theirs));
        let own = self.engine.add_gradients(&peers).map_err(device_error);
        let mut found = Losses::default();
        let mut squares = 0.0;
        let shares = std::iter::once(own).chain(adding.into_iter().map(Answer::wait));
        for (rank, share) in shares.collect::<Vec<_>>().into_iter().enumerate() {
            let (losses, norm) = share?;
            found.add(&self.given.losses((rank, self.engines()), &losses, self.distill));
            squares += norm * norm;
        }
        Ok((found, squares.sqrt()))
    }

    /// Sum of the losses, without gradients.
    pub(crate) fn loss_sum(&mut self, batch: &Batch) -> Result<f64> {
        Ok(self.losses(batch)?.sum)
    }

    /// The losses, without gradients.
    pub(crate) fn losses(&mut self, batch: &Batch) -> Result<Losses> {
        let converted = self.convert(batch)?;
        let values = self.engine.losses(&converted).map_err(device_error)?;
        Ok(losses_of(batch, &values, self.distill))
    }

    /// The same, and the most probable token for each target; `never` is not predicted.
    pub(crate) fn scored(&mut self, batch: &Batch, never: i64) -> Result<Scored> {
        let distill = self.distill;
        let converted = self.convert(batch)?;
        let values = self.engine.losses(&converted).map_err(device_error)?;
        let (loss_sum, batch) = (losses_of(batch, &values, distill).sum, converted);
        let never = i32::try_from(never).ok();
        let best = match batch.predicted_at.is_empty() {
            true => Vec::new(),
            false => self.engine.predict(&batch.predicted_at, never).map_err(device_error)?,
        };
        let best = best
            .into_iter()
            .map(|(token, probability)| MostProbable { token: i64::from(token), probability });
        Ok(Scored { loss_sum, best: best.collect() })
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
        let masks = vec![false; ids.len()];
        self.run_gated(ids, (positions, slots, tiles), &masks)?;
        self.place = None;
        Ok(())
    }

    /// The same with adapters at the masks alone; without gated adapters `masks` changes nothing.
    pub(crate) fn run_gated(
        &mut self,
        ids: &[i64],
        (positions, slots, tiles): (Vec<i32>, Vec<i32>, Vec<attention::Tile>),
        masks: &[bool],
    ) -> Result<()> {
        let tiles = tiles.iter().filter(|tile| !tile.is_empty()).map(convert_tile);
        let Reordered { tiles, place, first } = reordered(&tiles.collect::<Vec<_>>(), masks)?;
        // the trained row is a mask's input, whatever row its id has
        let ids: Vec<i32> =
            ids.iter().zip(masks).map(|(id, mask)| if *mask { 0 } else { *id as i32 }).collect();
        let pass = CachedPass {
            input_ids: moved(&ids, &place),
            positions: moved(&positions, &place),
            slots: moved(&slots, &place),
            tiles,
            adapted: first,
        };
        self.place = Some(place);
        self.engine.run_cached(&pass).map_err(device_error)
    }

    /// Where the engine has the tokens `at` of the last cached pass.
    fn places(&self, at: &[usize]) -> Vec<i32> {
        let place = |at: &usize| self.place.as_ref().map_or(*at, |place| place[*at]) as i32;
        at.iter().map(place).collect()
    }

    /// The most probable tokens after the tokens `at` of the last pass, without `never`, and their
    /// probabilities.
    pub(crate) fn predict(&mut self, at: &[usize], never: Option<i64>) -> Result<Vec<(i64, f32)>> {
        let at = self.places(at);
        let never = never.and_then(|id| i32::try_from(id).ok());
        let best = self.engine.predict(&at, never).map_err(device_error)?;
        Ok(best.into_iter().map(|(token, p)| (i64::from(token), p)).collect())
    }

    /// Logits after the tokens `at` of the last pass, `[at.len(), vocab_size]`.
    pub(crate) fn cached_logits(&mut self, at: &[usize]) -> Result<Vec<f32>> {
        let at = self.places(at);
        self.engine.cached_logits(&at).map_err(device_error)
    }

    /// Logits of every stream position, `[rows · len, vocab_size]`.
    pub(crate) fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        if !self.is_gated() {
            return self.engine.logits(&convert(batch)).map_err(device_error);
        }
        let (moved, place) = noised_first(batch)?;
        let logits = self.engine.logits(&moved).map_err(device_error)?;
        let vocab = logits.len() / place.len().max(1);
        Ok(place.iter().flat_map(|at| logits[at * vocab..][..vocab].iter().copied()).collect())
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
        if self.followers.is_none() {
            return self.engine.update(step).map_err(device_error);
        }
        self.on_all(move |engine| {
            engine.update(step)?;
            engine.wait()
        })?;
        // all shares are new from here on
        let peers = Arc::new(self.followers.as_ref().map(|f| f.peers.clone()).unwrap_or_default());
        self.on_all(move |engine| engine.fetch_weights(&peers))
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
    decoder: &Decoder,
    options: NativeOptions,
    tokens: usize,
    targets: usize,
) -> (usize, usize) {
    let taught = options.distill > 0.0;
    let options = engine_options(&decoder.cfg, options);
    let need = dlm_engine::memory_need(&shape(decoder), &options, (tokens, targets), taught);
    (need.fixed, need.activations)
}
