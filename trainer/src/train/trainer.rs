//! A training run under way, and how it is set up.
//!
//! In: configuration, device, dataset, the run's model source. Out: a [`Trainer`] with decoder,
//! weights and optimizer, at step 0; `resume.rs` continues from a checkpoint, `run.rs` takes the
//! steps, `step.rs` is one of them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dlm_datasets::{Dataset, Split};

use crate::compute::device::Team;
use crate::compute::{ComputeDevice, ComputePlan, EngineChoice};
use crate::config::{self, ActivationCheckpointing, Config};
use crate::diffusion::{DocumentMask, Layout, Objective, ObjectiveSpec, PassOptions};
use crate::error::{Error, Result};
use crate::io::checkpoint::{Identity, RunState};
use crate::io::description::check_tokenizer_folder;
use crate::io::engine_formats::{Trained, check as check_format};
use crate::io::export;
use crate::io::source::ModelSource;
use crate::model::{Decoder, Weights};
use crate::native::{self, Native, NativeOptions};
use crate::optim::{Optimizer, State};
use crate::train::checked_dataset::CheckedDataset;
use crate::train::data::BatchPlan;
use crate::train::export_run::TrainedModel;
use crate::train::identity::{SOURCE_HASH, distilled_share, identity};
use crate::train::micro_batch;
use crate::train::prepare_model::{self, PreparedModel, prepare};
use crate::train::workers::Workers;

/// Everything a step needs and changes.
pub(super) struct Trainer<'a> {
    pub(super) cfg: &'a Config,
    pub(super) compute: ComputePlan,
    pub(super) data: Arc<CheckedDataset>,
    pub(super) source: ModelSource,
    pub(super) decoder: Decoder,
    /// Empty while the native engine holds them.
    pub(super) weights: Weights,
    /// Its state is empty while the native engine holds it.
    pub(super) optimizer: Optimizer,
    /// The engine, from the first step on, where the compute plan says so.
    pub(super) native: Option<Native>,
    pub(super) state: RunState,
    pub(super) plan: BatchPlan,
    pub(super) pass: PassOptions,
    pub(super) identity: Identity,
    /// Step of the newest checkpoint on disk.
    pub(super) saved_step: Option<u64>,
    pub(super) workers: Workers,
    /// CUDA indices of the GPUs that train.
    pub(super) gpus: Vec<usize>,
    /// When the last checkpoint of this session began to be written.
    pub(super) save_began: Option<Instant>,
    /// Set by a signal that asks for a checkpoint and the end of the session.
    pub(super) stop: Arc<AtomicBool>,
}

impl<'a> Trainer<'a> {
    /// Set up a run. `with_weights` reads or draws weights and zeroes the optimizer state; without
    /// it both stay empty until a checkpoint supplies them.
    pub(super) fn new(
        cfg: &'a Config,
        team: &Team,
        data: Arc<CheckedDataset>,
        source: ModelSource,
        with_weights: bool,
    ) -> Result<Self> {
        let manifest = data.manifest();
        if let Some(bd_size) = cfg.conversion.bd_size.filter(|n| *n != manifest.bd_size) {
            return Err(Error::Mismatch(format!(
                "conversion.bd_size is {bd_size}, the dataset {} was packed with bd_size {}; prepare it again with --bd-size {bd_size} or leave conversion.bd_size null",
                data.dir().display(),
                manifest.bd_size
            )));
        }
        let mask_token_id = manifest.mask_token_id;
        if let Some(id) = cfg.conversion.mask_token_id.filter(|id| *id != mask_token_id as u64) {
            return Err(Error::Mismatch(format!(
                "conversion.mask_token_id is {id}, the mask token {:?} of the dataset {} has id {mask_token_id}; prepare it with the tokenizer in which the mask token has id {id}, or leave conversion.mask_token_id null",
                manifest.mask_token,
                data.dir().display()
            )));
        }
        check_evaluation(cfg, &data)?;
        check_proposals(cfg, manifest.bd_size)?;
        let compute = compute_plan(cfg, &team.device, &source)?;
        let PreparedModel { decoder, weights } = prepare(
            cfg,
            &source,
            &data,
            &compute.device.device,
            with_weights,
            compute.dtype.burn(),
        )?;
        // refused now rather than after days of training
        let block_diffusion = cfg.conversion.objective == config::Objective::BlockDiffusion;
        check_format(&decoder, cfg.export.format, Trained { mask_token_id, block_diffusion })?;
        export::check_adapters(&decoder, cfg.export.lora)?;
        check_tokenizer_folder(&data.dir().join("tokenizer"))?;
        if !compute.native && team.gpus.len() > 1 {
            return Err(Error::Usage(format!(
                "{}: only the native engine trains on several GPUs, and this run computes with Burn; give one GPU",
                compute.device.name
            )));
        }
        let workers = Workers::new(team, &decoder.params, cfg.train.batch_rows)?;
        let objective = objective_of(cfg);
        let plan = BatchPlan {
            seed: cfg.train.seed,
            batch_rows: cfg.train.batch_rows,
            micro_batch_rows: micro_batch::rows(
                cfg,
                &compute,
                &decoder,
                objective,
                manifest.seq_len,
                workers.count(),
            ),
            objective,
            spec: ObjectiveSpec {
                bd_size: manifest.bd_size,
                mask_token_id: manifest.mask_token_id,
                complementary: cfg.conversion.complementary,
                document_mask: match cfg.conversion.document_mask {
                    config::DocumentMask::Document => DocumentMask::Document,
                    config::DocumentMask::None => DocumentMask::None,
                },
                token_shift: decoder.cfg.has_token_shift(),
            },
            noise_eps: cfg.conversion.noise_eps,
            shape: compute.stream_shape,
            vocab_size: decoder.cfg.vocab_size,
        };
        let pass = PassOptions {
            activation_checkpointing: cfg.train.activation_checkpointing
                == ActivationCheckpointing::Layer,
            loss_chunk: cfg.train.loss_chunk.unwrap_or(LOSS_CHUNK),
            distill: distilled_share(cfg),
        };
        let optimizer = if with_weights {
            Optimizer::new(&cfg.optim, &decoder.params, &compute.device.device)
        } else {
            Optimizer { state: Vec::new(), updates: 0 }
        };
        let identity = identity(cfg, &data, &source, &decoder)?;
        let state = RunState { micro_batch_rows: plan.micro_batch_rows, ..RunState::default() };
        Ok(Trainer {
            cfg,
            compute,
            data,
            source,
            decoder,
            weights: weights.unwrap_or(Weights(Vec::new())),
            optimizer,
            native: None,
            state,
            plan,
            pass,
            identity,
            saved_step: None,
            workers,
            gpus: team.gpus.clone(),
            save_began: None,
            stop: Arc::default(),
        })
    }

    /// Hands weights and optimizer state over to the native engine where the compute plan says so.
    pub(super) fn start_native_engine(&mut self) -> Result<()> {
        if !self.compute.native || self.native.is_some() {
            return Ok(());
        }
        let options = NativeOptions {
            activation_checkpointing: self.pass.activation_checkpointing,
            loss_chunk: self.cfg.train.loss_chunk,
            training: true,
            dtype: self.compute.dtype,
            gpus: self.workers.count(),
            distill: self.pass.distill,
        };
        let mut native = Native::open_team(&self.gpus, &self.decoder, options)?;
        native.set_weights(&self.weights)?;
        native.set_state(&self.optimizer.state)?;
        (self.weights, self.optimizer.state) = (Weights(Vec::new()), Vec::new());
        self.native = Some(native);
        Ok(())
    }

    /// Copies of the weights and the optimizer's state in host memory, where the native engine
    /// holds them; nothing otherwise.
    pub(super) fn fetch(&self) -> Result<Option<(Weights, Vec<State>)>> {
        let Some(native) = &self.native else { return Ok(None) };
        Ok(Some((native.weights()?, native.state()?)))
    }

    /// The first line of a session: model, source, device, data and batch.
    pub(super) fn description(&self) -> String {
        let manifest = self.data.manifest();
        format!(
            "{} ({:?}, {:.2} M parameters) from {} on {}{}{}{}; {} rows of {} (bd_size {}), {} rows a step in micro-batches of {}, {} tokens to go",
            self.cfg.model.name,
            self.decoder.cfg.family,
            self.decoder.params.numel() as f64 / 1e6,
            self.source.name,
            self.compute.device.name,
            if self.compute.native { " (native engine)" } else { "" },
            if self.workers.count() > 1 {
                format!(", {} workers", self.workers.count())
            } else {
                String::new()
            },
            self.of_adapters(),
            self.data.rows(Split::Train),
            manifest.seq_len,
            manifest.bd_size,
            self.plan.batch_rows,
            self.plan.micro_batch_rows,
            self.cfg.conversion.total_tokens.saturating_sub(self.state.tokens),
        )
    }

    /// What is trained where that are adapters, and what it saves.
    fn of_adapters(&self) -> String {
        let params = &self.decoder.params;
        let Some(lora) = &params.lora else { return String::new() };
        let (trained, all) = (params.trained_numel(), params.numel());
        // two fp32 moments for each
        let mb = |numbers: usize| numbers as f64 * 8.0 / 1e6;
        let targets: Vec<&str> = lora.shape.targets.iter().map(|t| t.as_str()).collect();
        format!(
            "; adapters of rank {} (alpha {}) on {}: {trained} of {} parameters are trained ({:.2} %), {:.1} MB of optimizer state instead of {:.1}",
            lora.shape.rank,
            lora.shape.alpha,
            targets.join(", "),
            all + trained - lora.specs[lora.specs.len() - 1].numel(),
            100.0 * trained as f64 / all as f64,
            mb(trained),
            mb(all)
        )
    }

    /// The model as it is now, ready to export, with the weights that [`Trainer::fetch`] brought.
    pub(super) fn trained_model<'b>(&'b self, weights: &'b Weights) -> TrainedModel<'b> {
        TrainedModel {
            cfg: self.cfg,
            data: &self.data,
            decoder: &self.decoder,
            weights,
            state: &self.state,
            source: &self.source,
            source_hash: self.identity.get(SOURCE_HASH).map(String::as_str),
        }
    }
}

/// Whether the token budget or the steps of a run are used up.
pub(super) fn budget_used(cfg: &Config, state: &RunState) -> bool {
    state.tokens >= cfg.conversion.total_tokens
        || cfg.train.max_steps.is_some_and(|max| state.step >= max)
}

/// Refuse settings that need an evaluation loss where the dataset has no rows to evaluate.
fn check_evaluation(cfg: &Config, data: &Dataset) -> Result<()> {
    let needs = match (cfg.train.early_stop_patience, cfg.export.which) {
        (Some(patience), _) => format!("train.early_stop_patience={patience}"),
        (None, config::ExportWhich::Best) => "export.which=best".to_string(),
        (None, config::ExportWhich::Last) => return Ok(()),
    };
    if data.rows(Split::Eval) > 0 {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{needs} needs evaluation losses, and the dataset {} has no eval rows; prepare the data with --eval-fraction 0.01, or leave the setting out",
        data.dir().display()
    )))
}

/// Starting offsets of blocks in each row, where the configuration is silent.
const BLOCK_OFFSETS: usize = 2;

/// Longest block of proposals.
const MOST_PROPOSALS: usize = 32;

/// Refuse blocks that the lossless objective cannot be trained with.
fn check_proposals(cfg: &Config, bd_size: usize) -> Result<()> {
    if cfg.conversion.objective != config::Objective::Lossless {
        return Ok(());
    }
    if !(2..=MOST_PROPOSALS).contains(&bd_size) {
        return Err(Error::Mismatch(format!(
            "conversion.objective=lossless proposes the tokens of a block together, and the dataset was packed with bd_size {bd_size}; prepare it again with --bd-size 2 to {MOST_PROPOSALS}"
        )));
    }
    match cfg.conversion.block_offsets {
        Some(offsets) if offsets > bd_size => Err(Error::Usage(format!(
            "conversion.block_offsets={offsets}: a block of {bd_size} tokens has {bd_size} offsets; expected at most that many"
        ))),
        _ => Ok(()),
    }
}

/// Positions whose logits exist at one time where Burn computes and the configuration is silent.
const LOSS_CHUNK: usize = 1024;

/// Where and how a run computes.
fn compute_plan(cfg: &Config, device: &ComputeDevice, source: &ModelSource) -> Result<ComputePlan> {
    let compute = ComputePlan::new(device.clone(), cfg.train.dtype.map(Into::into));
    let model = prepare_model::described_model(cfg, source)?;
    let muon = cfg.optim.name == config::OptimName::Muon;
    let other = muon.then_some("it updates by AdamW, not by Muon");
    let chosen = native::is_chosen(engine_choice(cfg.train.engine), &compute, &model, other)?;
    Ok(if chosen { compute.on_native_engine() } else { compute })
}

fn engine_choice(engine: config::Engine) -> EngineChoice {
    match engine {
        config::Engine::Auto => EngineChoice::Auto,
        config::Engine::Native => EngineChoice::Native,
        config::Engine::Burn => EngineChoice::Burn,
    }
}

/// The objective of a configuration.
pub(crate) fn objective_of(cfg: &Config) -> Objective {
    let layout = match cfg.conversion.layout {
        config::Layout::Saving => Layout::Saving,
        config::Layout::Reference => Layout::Reference,
    };
    match cfg.conversion.objective {
        config::Objective::Sft => Objective::Sft,
        config::Objective::BlockDiffusion => Objective::BlockDiffusion(layout),
        config::Objective::Lossless => {
            let offsets = cfg.conversion.block_offsets.unwrap_or(BLOCK_OFFSETS);
            Objective::Lossless { layout, offsets, taught: distilled_share(cfg) > 0.0 }
        }
    }
}
