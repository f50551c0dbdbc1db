//! `dlm-train export RUN --out DIR`: a Hugging Face folder from a run's newest (or a named)
//! checkpoint.
//!
//! The run's own `config.yaml` says what it was; the dataset it was trained on must still be there
//! for the tokenizer.

use std::path::PathBuf;

use clap::Args;

use crate::compute::device;
use crate::config::{Config, Dtype, ExportFormat};
use crate::error::{Error, Result};
use crate::train::export_run;

/// Options of `dlm-train export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Folder of the run (output.dir).
    pub run: PathBuf,
    /// Where to write; default: the run's folder itself.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Dataset of the run; default: the one it was trained on.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Checkpoint folder name (step-000000200); default: the newest.
    #[arg(long)]
    pub checkpoint: Option<String>,
    /// fp32 or bf16; default: as configured.
    #[arg(long, value_parser = ["fp32", "bf16"])]
    pub dtype: Option<String>,
    /// hf, fast-dllm or packed-ternary; default: as configured.
    #[arg(long, value_parser = ["hf", "fast-dllm", "packed-ternary"])]
    pub format: Option<String>,
}

/// Run.
pub fn run(args: &ExportArgs) -> Result<bool> {
    let file = args.run.join("config.yaml");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| Error::io(&file, "reading the run's configuration", e))?;
    let mut cfg = Config::from_yaml(&text, &file.display().to_string())?;
    match args.dtype.as_deref() {
        Some("fp32") => cfg.export.dtype = Dtype::Fp32,
        Some(_) => cfg.export.dtype = Dtype::Bf16,
        None => {}
    }
    match args.format.as_deref() {
        Some("fast-dllm") => cfg.export.format = ExportFormat::FastDllm,
        Some("packed-ternary") => cfg.export.format = ExportFormat::PackedTernary,
        Some(_) => cfg.export.format = ExportFormat::Hf,
        None => {}
    }
    cfg.output.dir = args.run.clone();
    let data = args.data.clone().unwrap_or_else(|| cfg.data.dir.clone());
    let out = args.out.clone().unwrap_or_else(|| args.run.clone());
    export_run::export_checkpoint(
        &cfg,
        &data,
        args.checkpoint.as_deref(),
        &out,
        &device::choose("cpu")?,
    )?;
    Ok(true)
}
