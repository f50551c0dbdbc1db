//! `dlm-train export RUN --out DIR`: a Hugging Face folder from a checkpoint of a run.
//!
//! In: the run's folder, whose `config.yaml` has its settings, and the dataset it was trained on,
//! which has the tokenizer. Out: the exported folder, with a model card and on a hub where that is
//! wanted.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::compute::ComputeDtype;
use crate::config::{Config, Dtype, ExportFormat, ExportWhich, LoraExport};
use crate::error::{Error, Result};
use crate::publish::facts::Facts;
use crate::publish::push;
use crate::train::export_run;
use crate::train::output_folder;

/// Arguments of `dlm-train export` as typed.
#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// Folder of the run (its output.dir).
    pub run: PathBuf,
    /// Folder to write [default: the run's folder].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Packed dataset of the run [default: the one it was trained on].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Name of the checkpoint folder, such as step-000000200 [default: as --which says].
    #[arg(long, conflicts_with = "which")]
    pub checkpoint: Option<String>,
    /// The newest checkpoint or the one with the lowest evaluation loss [default: export.which of
    /// the run].
    #[arg(long, value_enum)]
    pub which: Option<WhichName>,
    /// Dtype of the stored weights [default: export.dtype of the run].
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeDtype>,
    /// Form of the exported folder [default: export.format of the run].
    #[arg(long, value_enum)]
    pub format: Option<FormatName>,
    /// What a run with adapters exports [default: export.lora of the run].
    #[arg(long, value_enum)]
    pub lora: Option<LoraName>,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Options for a hub.
#[derive(Args, Debug)]
#[command(next_help_heading = "Hub")]
pub(super) struct HubArgs {
    /// Write a model card into the exported folder: README.md.
    #[arg(long)]
    pub card: bool,
    /// Push the exported folder to this repository of a Hugging Face hub, with a model card; made
    /// if it is missing. Sends what is missing there, in one commit. The token comes from HF_TOKEN
    /// or `hf auth login`.
    #[arg(long, value_name = "ORG/NAME")]
    pub push: Option<String>,
    /// Let everybody see a repository that has to be made [default: its owner only].
    #[arg(long, requires = "push")]
    pub public: bool,
}

/// Names of the checkpoints that can be exported without knowing their steps.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WhichName {
    /// The newest.
    Last,
    /// The one with the lowest evaluation loss.
    Best,
}

/// Names of the export formats.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FormatName {
    /// The source's architecture.
    Hf,
    /// The published Fast-dLLM v2 architecture: Qwen2's layers, and Llama's with biases of zero.
    FastDllm,
    /// The published SDAR architecture: Qwen3's layers, trained without the token shift.
    Sdar,
    /// The source's architecture with BitLinear weights packed, two bits each.
    PackedTernary,
}

/// What can be exported of a run with adapters.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LoraName {
    /// A model folder: the source's weights with the adapters added.
    Merged,
    /// The adapter alone, as a folder of the Python library peft.
    Adapter,
}

impl From<FormatName> for ExportFormat {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Hf => ExportFormat::Hf,
            FormatName::FastDllm => ExportFormat::FastDllm,
            FormatName::Sdar => ExportFormat::Sdar,
            FormatName::PackedTernary => ExportFormat::PackedTernary,
        }
    }
}

/// Exports.
pub(super) fn run(args: &ExportArgs) -> Result<bool> {
    let file = args.run.join("config.yaml");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| Error::io(&file, "reading the run's configuration", e))?;
    let mut config = Config::from_yaml(&text, &file.display().to_string())?;
    if let Some(dtype) = args.dtype {
        config.export.dtype = match dtype {
            ComputeDtype::Fp32 => Dtype::Fp32,
            ComputeDtype::Bf16 => Dtype::Bf16,
        };
    }
    if let Some(format) = args.format {
        config.export.format = format.into();
    }
    if let Some(which) = args.which {
        config.export.which = match which {
            WhichName::Last => ExportWhich::Last,
            WhichName::Best => ExportWhich::Best,
        };
    }
    if let Some(lora) = args.lora {
        config.export.lora = match lora {
            LoraName::Merged => LoraExport::Merged,
            LoraName::Adapter if config.conversion.lora.is_some() => LoraExport::Adapter,
            LoraName::Adapter => {
                return Err(Error::Usage(format!(
                    "--lora adapter: {} trained the whole model (conversion.lora is null); leave --lora out",
                    args.run.display()
                )));
            }
        };
    }
    config.output.dir = args.run.clone();
    let data = args.data.as_ref().unwrap_or(&config.data.dir);
    let out = match &args.out {
        Some(out) => output_folder::expanded("--out", out)?,
        None => args.run.clone(),
    };
    let checkpoint = args.checkpoint.as_deref();
    let HubArgs { card, push: id, public } = &args.hub;
    if let Some(id) = id {
        dlm_prep::hub::check_push("--push", id)?;
    }
    export_run::export_checkpoint(&config, data, checkpoint, &out)?;
    if *card || id.is_some() {
        let facts = Facts::read(&out, &args.run, Some(data))?;
        match id {
            Some(id) => drop(push::push(&out, &facts, id, *public)?),
            None => push::write_card(&out, &facts, None)?,
        }
    }
    Ok(true)
}
