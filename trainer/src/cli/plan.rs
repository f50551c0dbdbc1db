//! `dlm-train plan`: what a run will take, before a machine is rented.
//!
//! In: a configuration as for training, a GPU. Out, on stdout: memory, micro-batch, time, price and
//! disk; with `--json` one object.

use std::path::PathBuf;

use clap::Args;
use dlm_datasets::Manifest;
use dlm_prep::ConsoleProgress;
use dlm_prep::hub::{ModelPart, resolve_model};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::estimate::{Gpus, SEQ_LEN, Shapes, estimate};
use crate::report::console;

/// Arguments of `dlm-train plan` as typed.
#[derive(Args, Debug)]
pub(super) struct PlanArgs {
    /// GPU by SkyPilot's name, and how many: H100, H200, H100:4.
    #[arg(long, default_value = "H100")]
    pub gpu: String,
    /// Free memory of each GPU, GiB [default: that of an idle H100 or H200].
    #[arg(long, value_name = "GIB", value_parser = positive)]
    pub gpu_memory: Option<f64>,
    /// Price of the machine per hour, in any currency.
    #[arg(long, value_name = "X", value_parser = positive)]
    pub price_per_hour: Option<f64>,
    /// Packed dataset whose row length counts [default: rows of 512 tokens].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Tokens of a packed row, where there is no dataset yet.
    #[arg(long, conflicts_with = "data")]
    pub seq_len: Option<usize>,
    /// Folder of configuration files to read before the built-in ones.
    #[arg(long)]
    pub config_dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// group=choice (model=qwen3_4b) or section.key=value (conversion.total_tokens=1e9).
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// A finite number above 0.
pub(super) fn positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".into())
}

/// Prints the estimate.
pub(super) fn run(args: &PlanArgs) -> Result<bool> {
    let cfg = Config::load(args.config_dir.as_deref(), &args.overrides)?;
    let mut gpus = Gpus::parse(&args.gpu)?;
    gpus.gib = args.gpu_memory;
    let seq_len = match (&args.data, args.seq_len) {
        (Some(dir), _) => Manifest::read(dir)?.seq_len,
        (None, Some(0)) => return Err(Error::Usage("--seq-len 0: expected 1 or more".into())),
        (None, length) => length.unwrap_or(SEQ_LEN),
    };
    let estimate = estimate(&cfg, shapes(&cfg)?, &gpus, seq_len)?;
    if args.json {
        let mut object = serde_json::to_value(&estimate)
            .map_err(|e| Error::Model(format!("writing the plan failed: {e}")))?;
        if let (Some(price), Some(hours)) = (args.price_per_hour, estimate.hours) {
            object["price"] = (price * hours).into();
        }
        console::result(object)?;
        return Ok(true);
    }
    console::result(estimate.lines(args.price_per_hour).join("\n"))?;
    Ok(true)
}

/// The model's shapes: built in where the source is that of the model's own configuration, else
/// those of the source's config.json, from the hub if need be.
fn shapes(cfg: &Config) -> Result<Shapes> {
    let usual = Config::load(None, &[format!("model={}", cfg.model.name)]);
    let is_usual = usual.is_ok_and(|usual| usual.source.path == cfg.source.path);
    if let Some(shapes) = Shapes::built_in(cfg)?.filter(|_| is_usual) {
        return Ok(shapes);
    }
    let path = cfg.source.path.as_deref().unwrap_or_default();
    let model = resolve_model(path, ModelPart::Shapes, "source.path", &ConsoleProgress::default())?;
    Shapes::of_folder(&model.folder, &model.name)
}
