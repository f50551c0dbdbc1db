//! `dlm-train --data DIR key=value …`: train and export.

use std::path::PathBuf;

use clap::Args;

use crate::compute::device;
use crate::config::Config;
use crate::error::Result;
use crate::train::run::{self, Resume, RunOptions};

/// Options of a training run.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// Folder written by dlm-prep; wins over data.dir.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Configuration tree to use instead of the built-in one.
    #[arg(long)]
    pub config_dir: Option<PathBuf>,
    /// auto, cpu, cuda[:N].
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// What to do with a checkpoint in output.dir.
    #[arg(long, value_enum, default_value_t = Resume::Auto)]
    pub resume: Resume,
    /// With --resume never: discard an earlier run's checkpoints.
    #[arg(long)]
    pub overwrite: bool,
    /// Resume although settings, data or model differ from the checkpoint's.
    #[arg(long)]
    pub allow_changes: bool,
    /// Print the composed configuration and stop.
    #[arg(long)]
    pub print_config: bool,
    /// group=choice (model=qwen3_4b) and section.key=value (optim.lr=1e-5).
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Run.
pub fn run(args: &TrainArgs) -> Result<bool> {
    let mut cfg = Config::load(args.config_dir.as_deref(), &args.overrides)?;
    if let Some(data) = &args.data {
        cfg.data.dir = data.clone();
    }
    if args.print_config {
        print!("{}", cfg.to_yaml()?);
        return Ok(true);
    }
    let chosen = device::choose(&args.device)?;
    let options = RunOptions {
        resume: args.resume,
        overwrite: args.overwrite,
        allow_changes: args.allow_changes,
    };
    run::run(&cfg, &chosen, options)?;
    Ok(true)
}
