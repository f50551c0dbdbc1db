//! What a run will take, before a machine is rented: memory, micro-batch, time, price, disk.
//!
//! In: the run's configuration, the model's shapes, a GPU. Out: an [`Estimate`]. Memory is counted
//! as the trainer counts it (`train/micro_batch.rs`); speeds are the last measured ones of runs
//! that are alike (`measured.rs`), or "not measured"; prices are the caller's.

mod measured;
mod words;

use std::path::Path;

use serde::Serialize;

use crate::bench::presets;
use crate::compute::{ComputeDtype, DeviceKind};
use crate::config::{
    ActivationCheckpointing, BitLinear, Config, Dtype, Engine, Init, LoraExport, Objective,
    OptimName,
};
use crate::error::{Error, Result};
use crate::model::{Decoder, ModelConfig, json_text};
use crate::native;
use crate::train::micro_batch::{Passes, for_workers, native_fits};
use crate::train::prepare_model::lora_shape;
use crate::train::trainer::objective_of;

use measured::{Measured, Wanted};

/// Tokens of a packed row where no dataset says: dlm-prep's default.
pub(crate) const SEQ_LEN: usize = 512;

/// What an idle card has free, GiB, by SkyPilot's name: a little less than its memory.
const CARDS: [(&str, usize); 2] = [("H100", 78), ("H200", 139)];

/// Bytes that a checkpoint stores for each trained parameter: fp32 weights and two moments.
const CHECKPOINT_BYTES: usize = 12;

/// The machine that is asked about.
#[derive(Debug, Clone)]
pub(crate) struct Gpus {
    /// SkyPilot's name.
    pub name: String,
    pub count: usize,
    /// Free memory of each, GiB; `None`: that of [`CARDS`].
    pub gib: Option<f64>,
}

impl Gpus {
    /// `H100` or `H100:4`.
    pub(crate) fn parse(text: &str) -> Result<Gpus> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match (count.parse(), !name.is_empty() && name.chars().all(plain)) {
            (Ok(count), true) if count > 0 => Ok(Gpus { name: name.into(), count, gib: None }),
            _ => Err(Error::Usage(format!(
                "--gpu {text}: expected a GPU by SkyPilot's name and how many, such as H100 or H100:4"
            ))),
        }
    }

    fn bytes(&self) -> Option<usize> {
        let known = CARDS.iter().find(|(name, _)| *name == self.name).map(|(_, gib)| gib << 30);
        self.gib.map(|gib| (gib * (1u64 << 30) as f64) as usize).or(known)
    }
}

/// What a run will take.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Estimate {
    pub model: String,
    /// Where the shapes come from.
    pub shapes: String,
    pub parameters: usize,
    /// Those that are trained: all, or those of adapters.
    pub trained_parameters: usize,
    pub gpu: String,
    pub gpus: usize,
    /// GPUs that the run computes on.
    pub gpus_used: usize,
    pub seq_len: usize,
    pub batch_rows: usize,
    /// Rows per forward pass.
    pub micro_batch_rows: Option<usize>,
    /// Whether one row fits; `None` where that is not known.
    pub fits: Option<bool>,
    /// Whether it fits with less room than the trainer leaves where it chooses the rows itself.
    pub narrowly: bool,
    /// Free memory of a GPU, bytes.
    pub gpu_bytes: Option<usize>,
    /// Weights, gradients, moments and libraries, bytes; with the native engine.
    pub fixed_bytes: Option<usize>,
    /// Activations of a micro-batch, bytes; with the native engine.
    pub activation_bytes: Option<usize>,
    /// Bytes that training all parameters would take with as many rows a pass, where adapters are
    /// trained; with the native engine.
    pub full_bytes: Option<usize>,
    /// `native` or `burn`.
    pub engine: &'static str,
    pub total_tokens: u64,
    /// Source tokens per second, where a run like this one was measured.
    pub tokens_per_s: Option<f64>,
    /// What was measured, or why there is no figure.
    pub measured: String,
    pub hours: Option<f64>,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: usize,
    /// Checkpoints that are on the disk at one time, at most.
    pub checkpoints: usize,
    /// Bytes of checkpoints, source and exported folder.
    pub disk_bytes: usize,
}

/// The model that an estimate is about.
pub(crate) struct Shapes {
    pub config: ModelConfig,
    /// Where they come from, for people.
    pub from: String,
}

impl Shapes {
    /// The shapes of a folder with `config.json`.
    pub(crate) fn of_folder(folder: &Path, from: &str) -> Result<Shapes> {
        Ok(Shapes { config: ModelConfig::read(folder)?, from: from.into() })
    }

    /// Those that need neither network nor disk: of `source.config` for random weights, of the
    /// built-in models for others; `None` where there are none.
    pub(crate) fn built_in(cfg: &Config) -> Result<Option<Shapes>> {
        if cfg.source.init == Init::Random {
            let text = cfg.source_config()?;
            let raw = json_text::parse(&text)
                .map_err(|e| Error::Usage(format!("source.config is not valid JSON: {e}")))?;
            let config = ModelConfig::from_json(raw)?;
            return Ok(Some(Shapes { config, from: "source.config".into() }));
        }
        let Some(preset) = presets::of_model(&cfg.model.name) else { return Ok(None) };
        let config = ModelConfig::from_json(presets::config(preset)?)?;
        Ok(Some(Shapes { config, from: format!("built-in shapes of {}", cfg.model.name) }))
    }
}

/// What a run of this configuration takes.
pub(crate) fn estimate(
    cfg: &Config,
    shapes: Shapes,
    gpus: &Gpus,
    seq_len: usize,
) -> Result<Estimate> {
    let Shapes { mut config, from } = shapes;
    match cfg.conversion.bitlinear {
        BitLinear::Auto => {}
        BitLinear::On => config.set_bitlinear(true),
        BitLinear::Off => config.set_bitlinear(false),
    }
    let full = Decoder::new(config);
    let mut decoder = full.clone();
    let parameters = decoder.params.numel();
    let lora = cfg.conversion.lora.as_ref();
    if let Some(lora) = lora {
        // which token the mask is changes no size
        let gated = cfg.conversion.objective == Objective::Lossless;
        let shape = lora_shape(lora, decoder.cfg.vocab_size.saturating_sub(1), gated);
        decoder.params = decoder.params.with_lora(shape)?;
    }
    let trained = decoder.params.trained_numel();
    let dtype = cfg.train.dtype.map_or(ComputeDtype::Bf16, Into::into);
    let burn = cfg.optim.name == OptimName::Muon
        || cfg.train.engine == Engine::Burn
        || native::unsupported(&decoder.cfg).is_some();
    let native = !burn && cfg!(feature = "native");
    let objective = objective_of(cfg);
    // several train with the native engine only, and each needs a row of every step
    let used = if native { gpus.count.min(cfg.train.batch_rows.max(1)).max(1) } else { 1 };
    let passes = Passes { cfg, decoder: &decoder, objective, seq_len, dtype, native, gpus: used };
    let free = gpus.bytes();
    let rows = cfg
        .train
        .micro_batch_rows
        .or(free.map(|free| passes.rows_in(DeviceKind::Cuda(0), Some(free))))
        .map(|rows| for_workers(rows, cfg.train.batch_rows.max(1), used));
    let need = rows.filter(|_| native).map(|rows| passes.native_need(rows));
    let all = Passes { decoder: &full, ..passes };
    let of_all = rows.filter(|_| native && lora.is_some()).map(|rows| all.native_need(rows));
    let fits = free.zip(need).map(|(free, need)| need.0.saturating_add(need.1) <= free);
    let narrowly = free.zip(need).is_some_and(|(free, need)| !native_fits(free, need));
    let measured = Measured::read()?;
    // shapes count, not names: the preset whose parameters are as many
    let preset = presets::of_model(&cfg.model.name).filter(|preset| {
        let config = presets::config(preset).and_then(ModelConfig::from_json);
        config.is_ok_and(|config| Decoder::new(config).params.numel() == parameters)
    });
    let checkpointing = cfg.train.activation_checkpointing == ActivationCheckpointing::Layer;
    let alike = native && lora.is_none() && fits != Some(false);
    let run = preset.filter(|_| alike).and_then(|preset| {
        measured.closest(Wanted {
            preset,
            gpu: &gpus.name,
            objective,
            activation_checkpointing: checkpointing,
            rows: rows.unwrap_or(1),
            seq_len,
            bf16: dtype == ComputeDtype::Bf16,
        })
    });
    let said = match run {
        Some(run) => format!(
            "measured on one {} with {} rows a pass ({}, commit {}; {}){}",
            measured.card,
            run.rows,
            measured.date,
            measured.commit,
            measured.conditions,
            match used {
                1 => String::new(),
                _ => format!("; {used} together were never measured"),
            }
        ),
        None => format!(
            "not measured for this model and these settings on {}; `dlm-train bench train` measures it there",
            gpus.name
        ),
    };
    let total_tokens = cfg.conversion.total_tokens;
    let exported = match cfg.export.dtype {
        Dtype::Bf16 => 2,
        Dtype::Fp32 => 4,
    };
    // the newest, the one with the lowest evaluation loss, and one that is being written
    let checkpoints = cfg.train.keep_checkpoints + 2;
    let checkpoint_bytes = CHECKPOINT_BYTES * trained;
    let exported = match cfg.export.lora {
        LoraExport::Merged => exported * parameters,
        // always in fp32
        LoraExport::Adapter => 4 * trained,
    };
    Ok(Estimate {
        model: cfg.model.name.clone(),
        shapes: from,
        parameters,
        trained_parameters: trained,
        gpu: gpus.name.clone(),
        gpus: gpus.count,
        gpus_used: used,
        seq_len,
        batch_rows: cfg.train.batch_rows,
        micro_batch_rows: rows,
        fits,
        narrowly,
        gpu_bytes: free,
        fixed_bytes: need.map(|need| need.0),
        activation_bytes: need.map(|need| need.1),
        full_bytes: of_all.map(|(fixed, activations)| fixed.saturating_add(activations)),
        engine: if native { "native" } else { "burn" },
        total_tokens,
        tokens_per_s: run.map(|run| run.tokens_per_s),
        measured: said,
        hours: run.filter(|_| used == 1).map(|run| total_tokens as f64 / run.tokens_per_s / 3600.0),
        checkpoint_bytes,
        checkpoints,
        disk_bytes: checkpoints * checkpoint_bytes + 2 * parameters + exported,
    })
}

/// The estimate that `wf dlm` shows: of a local source's shapes, else of the built-in ones; `None`
/// where neither is known, or cannot be read (the run itself will say why).
pub(crate) fn for_launch(
    cfg: &Config,
    gpu: &str,
    gpus: usize,
    seq_len: Option<usize>,
) -> Option<Estimate> {
    let local = cfg.source.path.as_deref().map(Path::new).filter(|path| path.is_dir());
    let shapes = match local {
        Some(folder) => Shapes::of_folder(folder, &folder.display().to_string()).ok()?,
        None => {
            let mut shapes = Shapes::built_in(cfg).ok()??;
            let usual = Config::load(None, &[format!("model={}", cfg.model.name)]).ok()?;
            if let Some(path) = &cfg.source.path
                && cfg.source.path != usual.source.path
            {
                shapes.from += &format!("; those of {path} are read on the machine");
            }
            shapes
        }
    };
    let gpus = Gpus { name: gpu.into(), count: gpus, gib: None };
    estimate(cfg, shapes, &gpus, seq_len.unwrap_or(SEQ_LEN)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(overrides: &[&str], gpu: &str) -> Estimate {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let cfg = Config::load(None, &overrides).unwrap();
        let shapes = Shapes::built_in(&cfg).unwrap().unwrap();
        estimate(&cfg, shapes, &Gpus::parse(gpu).unwrap(), SEQ_LEN).unwrap()
    }

    #[test]
    fn what_ran_on_the_card_is_said_to_fit() {
        for run in Measured::read().unwrap().runs() {
            let model = format!("model={}", run.model.replace('.', "_"));
            let rows = format!("train.micro_batch_rows={}", run.rows);
            let layout = format!("conversion.layout={}", run.layout);
            let kept = match run.activation_checkpointing {
                true => "train.activation_checkpointing=layer",
                false => "train.activation_checkpointing=none",
            };
            let plan = planned(&[&model, &rows, &layout, kept], "H100");
            assert_eq!(plan.tokens_per_s, Some(run.tokens_per_s), "{run:?}");
            // the count is an upper bound but for what the engine takes more at a time
            let counted = plan.fixed_bytes.unwrap() + plan.activation_bytes.unwrap();
            let gib = counted as f64 / (1u64 << 30) as f64;
            assert!(gib > 0.9 * run.gib && gib < 1.5 * run.gib, "{run:?}: {gib}");
        }
        let plan = planned(&["model=qwen3_4b"], "H100");
        assert_eq!(plan.fits, Some(true), "{plan:?}");
        assert!(plan.micro_batch_rows.unwrap() >= 4, "{plan:?}");
        assert_eq!(plan.tokens_per_s, Some(7596.0));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let plan = planned(&["model=qwen3_4b", "train.micro_batch_rows=64"], "H100");
        assert_eq!((plan.fits, plan.hours), (Some(false), None));
        assert!(plan.obstacle().unwrap().contains("--gpu H200"));
        assert!(plan.lines(None)[1].contains("does NOT fit"));
    }

    #[test]
    fn hours_and_price_follow_from_the_measured_rate() {
        let plan = planned(&["model=smollm2_135m", "conversion.total_tokens=1e9"], "H100");
        let rate = plan.tokens_per_s.unwrap();
        assert!((plan.hours.unwrap() - 1e9 / rate / 3600.0).abs() < 1e-9);
        let lines = plan.lines(Some(10.0)).join("\n");
        assert!(
            lines.contains(&format!("{:.2} at 10 an hour", plan.hours.unwrap() * 10.0)),
            "{lines}"
        );
        assert!(plan.lines(None).join("\n").contains("--price-per-hour"));
        // several cards: memory is counted, the rate of all together is not known
        let four = planned(&["model=smollm2_135m"], "H100:4");
        assert_eq!((four.gpus_used, four.hours), (4, None));
        assert!(four.fixed_bytes < plan.fixed_bytes, "{four:?}");
        assert!(four.lines(None).join("\n").contains("4 together were never measured"));
        let muon = planned(&["model=smollm2_135m", "optim=muon"], "H100:4");
        assert!(muon.lines(None).join("\n").contains("1 of 4 are used"));
    }

    #[test]
    fn nothing_is_guessed() {
        let plan = planned(&["model=smollm2_135m"], "H200");
        assert_eq!((plan.tokens_per_s, plan.hours), (None, None));
        assert!(plan.lines(Some(1.0)).join("\n").contains("not measured"));
        assert_eq!(plan.fits, Some(true));
        let plan = planned(&["model=smollm2_135m"], "L4");
        assert_eq!((plan.fits, plan.micro_batch_rows), (None, None));
        assert!(plan.lines(None)[1].contains("--gpu-memory"));
        let plan = planned(&["model=qwen3_0_6b", "optim=muon"], "H100");
        assert_eq!((plan.engine, plan.fits, plan.tokens_per_s), ("burn", None, None));
        // a model of the same name with other shapes is another model
        let cfg = Config::load(None, &["model=smollm2_135m".into()]).unwrap();
        let config = ModelConfig::from_json(presets::config("demo_5m").unwrap()).unwrap();
        let shapes = Shapes { config, from: "a folder".into() };
        let plan = estimate(&cfg, shapes, &Gpus::parse("H100").unwrap(), SEQ_LEN).unwrap();
        assert_eq!(plan.tokens_per_s, None);
    }

    #[test]
    fn gpus_are_a_name_and_a_number() {
        let gpus = Gpus::parse("A100-80GB:8").unwrap();
        assert_eq!((gpus.name.as_str(), gpus.count), ("A100-80GB", 8));
        for wrong in ["", "H100:", "H100:0", "H100:x", ":4", "H 100"] {
            assert!(Gpus::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_disk_holds_the_checkpoints() {
        let plan = planned(&["model=qwen3_4b"], "H100");
        assert_eq!(plan.checkpoints, 5);
        assert!(plan.disk_gb() * 1_000_000_000 > (5 * 12 * plan.parameters) as u64);
        assert_eq!(plan.disk_gb() % 50, 0);
    }

    /// Peaks that the stand-in driver recorded (docs/perf.md), GiB, without CUDA's own memory:
    /// `bench train --dtype bf16 --batch ROWS --lora-rank 16 ...`.
    #[test]
    fn adapters_take_what_was_recorded() {
        let layer = "train.activation_checkpointing=layer";
        let lossless = ["conversion.objective=lossless", "export.lora=adapter", layer];
        let recorded: [(&str, usize, &[&str], f64); 8] = [
            ("qwen3_4b", 8, &[layer], 13.00),
            ("qwen3_4b", 20, &[layer], 20.32),
            ("qwen3_4b", 40, &[layer], 30.31),
            ("qwen3_4b", 2, &[], 18.56),
            ("qwen3_4b", 6, &[], 39.86),
            ("qwen3_4b", 8, &lossless, 14.47),
            ("qwen3_0_6b", 8, &[], 15.63),
            ("qwen2_5_0_5b", 8, &[layer], 3.30),
        ];
        for (model, rows, more, peak) in recorded {
            let model = format!("model={model}");
            let rows = format!("train.micro_batch_rows={rows}");
            let kept = "train.activation_checkpointing=none";
            let common =
                [&model, &rows, kept, "conversion.lora={rank: 16}", "train.batch_rows=240"];
            let plan = planned(&[&common[..], more].concat(), "H100");
            let counted = plan.fixed_bytes.unwrap() + plan.activation_bytes.unwrap();
            let gib = counted as f64 / (1u64 << 30) as f64;
            assert!(gib > 0.9 * peak && gib < 1.5 * peak, "{model} {rows} {more:?}: {gib}, {peak}");
            assert_eq!((plan.engine, plan.tokens_per_s), ("native", None));
        }
    }

    #[test]
    fn adapters_are_planned_beside_full_fine_tuning() {
        let lora = ["model=qwen3_4b", "conversion.lora={rank: 16}", "train.micro_batch_rows=8"];
        let plan = planned(&lora, "H100");
        let whole = planned(&["model=qwen3_4b", "train.micro_batch_rows=8"], "H100");
        let of_whole = whole.fixed_bytes.unwrap() + whole.activation_bytes.unwrap();
        assert_eq!((plan.full_bytes, whole.full_bytes), (Some(of_whole), None));
        // every layer: q and o 4096 x 2560, k and v 1024 x 2560, the MLP's 9728 x 2560; the row
        let layer = 2 * (4096 + 2560) + 2 * (1024 + 2560) + 3 * (9728 + 2560);
        assert_eq!(plan.trained_parameters, 36 * 16 * layer + 2560);
        assert_eq!(plan.checkpoint_bytes, 12 * plan.trained_parameters);
        assert!(plan.disk_bytes < whole.disk_bytes / 5, "{plan:?}");
        let lines = plan.lines(None).join("\n");
        let share = 100.0 * (plan.fixed_bytes.unwrap() + plan.activation_bytes.unwrap()) as f64
            / of_whole as f64;
        assert!(lines.contains(&format!("that is {share:.0} %")), "{lines}");
        // several cards share it as they share the rest
        assert_eq!(planned(&lora, "H100:4").gpus_used, 4);
        // a rank that no matrix has room for is refused as in training
        let cfg = ["model=qwen3_4b".to_string(), "conversion.lora={rank: 2000}".into()];
        let cfg = Config::load(None, &cfg).unwrap();
        let shapes = Shapes::built_in(&cfg).unwrap().unwrap();
        let refused = estimate(&cfg, shapes, &Gpus::parse("H100").unwrap(), SEQ_LEN);
        assert!(refused.unwrap_err().to_string().contains("at most 1024"));
    }
}
