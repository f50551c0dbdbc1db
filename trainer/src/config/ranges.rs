//! Limits of configuration values, alone and in combination.
//!
//! In: a [`Config`] of the right types. Out: nothing, or the first value that is out of range.

use super::choices::{ExportFormat, ExportWhich, Init, LoraExport, Objective, OptimName, Schedule};
use super::error::ConfigError;
use super::schema::Config;

/// Most rows of a step: their row numbers and masks are in memory at the same time.
const MOST_BATCH_ROWS: usize = 1 << 20;
/// Most steps that are read ahead; each holds its rows and masks.
const MOST_PREFETCH: usize = 1024;

impl Config {
    /// Refuses values of the right type that are out of range, alone or together with others.
    pub(super) fn check_ranges(&self) -> Result<(), ConfigError> {
        let (source, conversion, optim, train) =
            (&self.source, &self.conversion, &self.optim, &self.train);
        let name = &self.model.name;
        ensure(
            "model.name",
            name,
            !name.is_empty() && !name.contains(['/', '\\']),
            "a name without slashes",
        )?;
        match source.init {
            Init::Pretrained => ensure_set(
                "source.path",
                &source.path,
                "a folder or hub id, or source.init=random",
            )?,
            Init::Random => ensure_set(
                "source.config",
                &source.config,
                "a config.json, since source.init is random",
            )?,
        }
        ensure(
            "conversion.total_tokens",
            conversion.total_tokens,
            conversion.total_tokens > 0,
            "1 or more",
        )?;
        if let Some(bd_size) = conversion.bd_size {
            ensure(
                "conversion.bd_size",
                bd_size,
                bd_size > 0,
                "1 or more, or null for the dataset's",
            )?;
        }
        ensure(
            "conversion.token_shift",
            conversion.token_shift.unwrap_or(true),
            conversion.objective != Objective::Sft || conversion.token_shift != Some(false),
            "true or null with conversion.objective=sft, which predicts the next token",
        )?;
        let eps = conversion.noise_eps;
        ensure("conversion.noise_eps", eps, (0.0..1.0).contains(&eps), "at least 0 and below 1")?;
        for (key, rate) in
            [("optim.lr", optim.lr), ("optim.muon_lr", optim.muon_lr), ("optim.eps", optim.eps)]
        {
            ensure(key, rate, rate > 0.0, "above 0")?;
        }
        let (below_one, share) = ("at least 0 and below 1", "between 0 and 1");
        for (key, decay) in [
            ("optim.beta1", optim.beta1),
            ("optim.beta2", optim.beta2),
            ("optim.muon_momentum", optim.muon_momentum),
            ("optim.zclip.alpha", optim.zclip.alpha),
        ] {
            ensure(key, decay, (0.0..1.0).contains(&decay), below_one)?;
        }
        for (key, part) in [
            ("optim.warmup_ratio", optim.warmup_ratio),
            ("optim.min_lr_ratio", optim.min_lr_ratio),
            ("optim.decay_ratio", optim.decay_ratio),
        ] {
            ensure(key, part, (0.0..=1.0).contains(&part), share)?;
        }
        let both = optim.warmup_ratio + optim.decay_ratio;
        let fits = optim.schedule != Schedule::Wsd || both <= 1.0;
        ensure(
            "optim.decay_ratio",
            optim.decay_ratio,
            fits,
            "at most 1 - optim.warmup_ratio with optim.schedule=wsd",
        )?;
        ensure("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0.0, "0 or more")?;
        if let Some(clip) = optim.clip_norm {
            ensure("optim.clip_norm", clip, clip > 0.0, "above 0, or null for no clipping")?;
        }
        ensure("optim.zclip.z", optim.zclip.z, optim.zclip.z > 0.0, "above 0")?;
        ensure_within("train.batch_rows", train.batch_rows, MOST_BATCH_ROWS)?;
        if let Some(micro) = train.micro_batch_rows {
            let divides = micro > 0 && train.batch_rows.is_multiple_of(micro);
            let expected = format!("a divisor of train.batch_rows, which is {}", train.batch_rows);
            ensure("train.micro_batch_rows", micro, divides, &expected)?;
        }
        if let Some(steps) = train.max_steps {
            ensure("train.max_steps", steps, steps > 0, "1 or more, or null")?;
        }
        if let Some(factor) = train.spike_factor {
            ensure("train.spike_factor", factor, factor > 1.0, "above 1, or null for off")?;
        }
        let chunk = train.loss_chunk;
        ensure("train.loss_chunk", chunk.unwrap_or(1), chunk != Some(0), "1 or more, or null")?;
        ensure("train.log_every", train.log_every, train.log_every > 0, "1 or more")?;
        ensure(
            "train.eval_rows",
            train.eval_rows,
            train.eval_every == 0 || train.eval_rows > 0,
            "1 or more with eval_every",
        )?;
        ensure(
            "train.early_stop_patience",
            train.early_stop_patience.unwrap_or(0),
            train.early_stop_patience.is_none() || train.eval_every > 0,
            "null where train.eval_every is 0, since no evaluation is ever made",
        )?;
        ensure(
            "export.which",
            self.export.which,
            self.export.which == ExportWhich::Last || train.eval_every > 0,
            "last where train.eval_every is 0, since no evaluation is ever made",
        )?;
        self.check_lora()?;
        ensure(
            "train.keep_checkpoints",
            train.keep_checkpoints,
            train.keep_checkpoints > 0,
            "1 or more",
        )?;
        ensure_within("train.prefetch", train.prefetch, MOST_PREFETCH)
    }
}

impl Config {
    /// Refuses what does not go together with adapters, or without them.
    fn check_lora(&self) -> Result<(), ConfigError> {
        let lossless = self.conversion.objective == Objective::Lossless;
        if let Some(offsets) = self.conversion.block_offsets {
            ensure(
                "conversion.block_offsets",
                offsets,
                offsets > 0 && lossless,
                "1 or more with conversion.objective=lossless, else null",
            )?;
        }
        if let Some(share) = self.conversion.distill {
            ensure(
                "conversion.distill",
                share,
                (0.0..=1.0).contains(&share) && lossless,
                "0 (off) to 1 with conversion.objective=lossless, else null",
            )?;
        }
        let Some(lora) = &self.conversion.lora else {
            ensure(
                "conversion.objective",
                self.conversion.objective,
                !lossless,
                "another one, or adapters (conversion.lora={rank: 16}): the lossless objective leaves the source's weights as they are",
            )?;
            return ensure(
                "export.lora",
                self.export.lora,
                self.export.lora == LoraExport::Merged,
                "merged, since conversion.lora is null: there is no adapter to export",
            );
        };
        ensure("conversion.lora.rank", lora.rank, lora.rank > 0, "1 or more")?;
        if let Some(alpha) = lora.alpha {
            ensure("conversion.lora.alpha", alpha, alpha > 0.0, "above 0, or null for 2 · rank")?;
        }
        ensure(
            "source.init",
            "random",
            self.source.init == Init::Pretrained,
            "pretrained with conversion.lora: adapters change a source's weights, which must be there again to use them",
        )?;
        ensure(
            "export.lora",
            self.export.lora,
            !lossless || self.export.lora == LoraExport::Adapter,
            "adapter with conversion.objective=lossless: adapters that act on mask tokens alone cannot be added to the weights",
        )?;
        let warmup = self.conversion.lambda_warmup;
        ensure(
            "conversion.lambda_warmup",
            warmup,
            warmup == 0,
            "0 with conversion.lora: weights that are not trained do not get used to being quantised",
        )?;
        ensure(
            "optim.name",
            self.optim.name,
            self.optim.name == OptimName::Adamw,
            "adamw with conversion.lora",
        )?;
        ensure(
            "export.format",
            self.export.format,
            self.export.lora == LoraExport::Merged || self.export.format == ExportFormat::Hf,
            "hf with export.lora=adapter, which writes a peft folder and no model",
        )
    }
}

fn ensure(
    key: &'static str,
    value: impl std::fmt::Display,
    holds: bool,
    expected: &str,
) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::Value { key, value: value.to_string(), expected: expected.into() })
    }
}

fn ensure_within(key: &'static str, value: usize, most: usize) -> Result<(), ConfigError> {
    ensure(key, value, (1..=most).contains(&value), &format!("1 to {most}"))
}

fn ensure_set<T>(key: &'static str, value: &Option<T>, expected: &str) -> Result<(), ConfigError> {
    ensure(key, "null", value.is_some(), expected)
}
