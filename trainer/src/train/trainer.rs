//! A training run under way, and how it is set up.
//!
//! In: configuration, device, dataset, the run's model source. Out: a [`Trainer`] with decoder,
//! weights and optimizer, at step 0; `resume.rs` continues from a checkpoint, `run.rs` takes the
//! steps, `step.rs` is one of them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dlm_datasets::{Dataset, Split};

use crate::compute::{ComputeDevice, ComputePlan};
use crate::config::{self, ActivationCheckpointing, Config};
use crate::diffusion::{DocumentMask, Layout, Objective, ObjectiveSpec, PassOptions};
use crate::error::{Error, Result};
use crate::io::checkpoint::{Identity, RunState};
use crate::io::export;
use crate::io::source::ModelSource;
use crate::model::{Decoder, Weights};
use crate::optim::Optimizer;
use crate::train::data::BatchPlan;
use crate::train::export_run::TrainedModel;
use crate::train::identity::identity;
use crate::train::micro_batch;
use crate::train::prepare_model::{PreparedModel, prepare};

/// Everything a step needs and changes.
pub(super) struct Trainer<'a> {
    pub(super) cfg: &'a Config,
    pub(super) compute: ComputePlan,
    pub(super) data: Arc<Dataset>,
    pub(super) source: ModelSource,
    pub(super) decoder: Decoder,
    pub(super) weights: Weights,
    pub(super) optimizer: Optimizer,
    pub(super) state: RunState,
    pub(super) plan: BatchPlan,
    pub(super) pass: PassOptions,
    pub(super) identity: Identity,
    /// Step of the newest checkpoint on disk.
    pub(super) saved_step: Option<u64>,
    /// Set by a signal that asks for a checkpoint and the end of the session.
    pub(super) stop: Arc<AtomicBool>,
}

impl<'a> Trainer<'a> {
    /// Set up a run. `with_weights` reads or draws weights and zeroes the optimizer state; without
    /// it both stay empty until a checkpoint supplies them.
    pub(super) fn new(
        cfg: &'a Config,
        device: &ComputeDevice,
        data: Arc<Dataset>,
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
        let PreparedModel { decoder, weights } =
            prepare(cfg, &source, &data, &device.device, with_weights)?;
        // refused now rather than after days of training
        export::check(&decoder, cfg.export.format)?;
        let compute = ComputePlan::new(device.clone(), cfg.train.dtype.map(Into::into));
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
            },
            noise_eps: cfg.conversion.noise_eps,
            shape: compute.stream_shape,
            vocab_size: decoder.cfg.vocab_size,
        };
        let pass = PassOptions {
            activation_checkpointing: cfg.train.activation_checkpointing
                == ActivationCheckpointing::Layer,
            loss_chunk: cfg.train.loss_chunk,
        };
        let optimizer = if with_weights {
            Optimizer::new(&cfg.optim, &decoder.params, &device.device)
        } else {
            Optimizer { state: Vec::new(), updates: 0 }
        };
        let identity = identity(cfg, &data, &source.name, &decoder)?;
        let state = RunState { micro_batch_rows: plan.micro_batch_rows, ..RunState::default() };
        Ok(Trainer {
            cfg,
            compute,
            data,
            source,
            decoder,
            weights: weights.unwrap_or(Weights(Vec::new())),
            optimizer,
            state,
            plan,
            pass,
            identity,
            saved_step: None,
            stop: Arc::default(),
        })
    }

    /// The first line of a session: model, source, device, data and batch.
    pub(super) fn description(&self) -> String {
        let manifest = self.data.manifest();
        format!(
            "{} ({:?}, {:.2} M parameters) from {} on {}; {} rows of {} (bd_size {}), {} rows a step in micro-batches of {}, {} tokens to go",
            self.cfg.model.name,
            self.decoder.cfg.family,
            self.decoder.params.numel() as f64 / 1e6,
            self.source.name,
            self.compute.device.name,
            self.data.rows(Split::Train),
            manifest.seq_len,
            manifest.bd_size,
            self.plan.batch_rows,
            self.plan.micro_batch_rows,
            self.cfg.conversion.total_tokens.saturating_sub(self.state.tokens),
        )
    }

    /// The model as it is now, ready to export.
    pub(super) fn trained_model(&self) -> TrainedModel<'_> {
        TrainedModel {
            cfg: self.cfg,
            data: &self.data,
            decoder: &self.decoder,
            weights: &self.weights,
            state: &self.state,
            source: &self.source,
        }
    }
}

/// The objective of a configuration.
pub(super) fn objective_of(cfg: &Config) -> Objective {
    match (cfg.conversion.objective, cfg.conversion.layout) {
        (config::Objective::Sft, _) => Objective::Sft,
        (config::Objective::BlockDiffusion, config::Layout::Saving) => {
            Objective::BlockDiffusion(Layout::Saving)
        }
        (config::Objective::BlockDiffusion, config::Layout::Reference) => {
            Objective::BlockDiffusion(Layout::Reference)
        }
    }
}
