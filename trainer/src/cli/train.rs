//! `dlm-train --data DIR key=value …`: train on a packed dataset and export.

use std::path::PathBuf;

use clap::Args;

use crate::conversion::{Conversion, Resume, convert};
use crate::error::Result;
use crate::report::console;

/// Arguments of a training run as typed.
#[derive(Args, Debug)]
pub(super) struct TrainArgs {
    /// Packed dataset: a folder written by dlm-prep [default: data.dir of the configuration].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Folder of configuration files to read before the built-in ones.
    #[arg(long)]
    pub config_dir: Option<PathBuf>,
    /// auto, cpu, cuda[:N[,N]] or wgpu [default: auto].
    #[arg(long)]
    pub device: Option<String>,
    /// GPUs, or workers on the CPU, that share the rows of each step [default: 1].
    #[arg(long, value_name = "N")]
    pub devices: Option<usize>,
    /// What to do with a checkpoint in output.dir [default: auto].
    #[arg(long, value_enum)]
    pub resume: Option<Resume>,
    /// With --resume never: discard the checkpoints of an earlier run.
    #[arg(long)]
    pub overwrite: bool,
    /// Resume even though settings, dataset or model differ from the checkpoint's.
    #[arg(long)]
    pub allow_changes: bool,
    /// Print the composed configuration and stop.
    #[arg(long)]
    pub print_config: bool,
    /// group=choice (model=qwen3_4b) or section.key=value (optim.lr=1e-5).
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Trains and exports, or prints the configuration.
pub(super) fn run(args: &TrainArgs) -> Result<bool> {
    let conversion = conversion(args);
    let mut config = conversion.config()?;
    if let Some(data) = &args.data {
        config.data.dir = data.clone();
    }
    if args.print_config {
        console::text(config.to_yaml()?)?;
        return Ok(true);
    }
    convert(&conversion, &config.data.dir, &config.output.dir)?;
    Ok(true)
}

fn conversion(args: &TrainArgs) -> Conversion {
    let mut conversion = Conversion::new()
        .resume(args.resume.unwrap_or_default())
        .overwrite(args.overwrite)
        .allow_changes(args.allow_changes);
    if let Some(dir) = &args.config_dir {
        conversion = conversion.config_dir(dir);
    }
    if let Some(device) = &args.device {
        conversion = conversion.device(device);
    }
    if let Some(devices) = args.devices {
        conversion = conversion.devices(devices);
    }
    args.overrides.iter().fold(conversion, Conversion::with_override)
}
