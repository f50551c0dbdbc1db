//! `wf`: launch, follow and cancel training runs on rented machines.
//!
//! In: the command line. Out: the exit code of the process; `launch` does the work.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::launch::{self, LaunchOptions, Scale};
use crate::report::console;

/// Runs listed by `wf runs` unless `--limit` says otherwise.
const RUNS: usize = 10;

#[derive(Parser)]
#[command(name = "wf", version = super::VERSION, about = "Train on rented machines through SkyPilot")]
struct Wf {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Launch a training run.
    Dlm(Box<DlmArgs>),
    /// Print the log of a run, also of one that has ended.
    Logs {
        /// Name of the run; wf-dlm-train is the newest that wf launched.
        name: String,
        /// Keep printing new lines until the run ends.
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop a run.
    Cancel {
        /// Name of the run.
        name: String,
    },
    /// List runs.
    Runs {
        /// Number of runs to list [default: 10].
        #[arg(short = 'n', long)]
        limit: Option<usize>,
    },
}

/// Options of `wf dlm`.
#[derive(Args, Debug)]
struct DlmArgs {
    /// Model: a choice of configs/model (qwen3_4b, smollm2_135m …).
    #[arg(short, long)]
    model: String,
    /// Its source: folder, hf://org/name[@rev], org/name, gs://bucket/folder or s3://bucket/folder.
    #[arg(short, long)]
    source: Option<String>,
    /// Size of the machine.
    #[arg(long, value_enum, default_value_t = Scale::Dev)]
    scale: Scale,
    /// GPU model, by SkyPilot's name.
    #[arg(long, default_value = "H100")]
    gpu: String,
    /// Cloud, or cloud/region[/zone]: nebius, gcp, aws … [default: the cheapest that SkyPilot may
    /// use].
    #[arg(short, long)]
    cloud: Option<String>,
    /// Rent a spot machine, which may be taken away; the run continues on the next one.
    #[arg(long)]
    spot: bool,
    /// Bucket for checkpoints and result: gs://bucket or s3://bucket [default: gs://$GCS_BUCKET].
    #[arg(long)]
    bucket: Option<String>,
    /// Name of the run; the same name continues it [default: model and time].
    #[arg(short, long)]
    name: Option<String>,
    /// A dlm-train to be sent to the machine; for BitNet and Muon one built with --features cuda
    /// [default: the dlm-train next to wf if it can run there; else dlm-train is built there].
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Return once the run is submitted; do not follow its log.
    #[arg(long)]
    detach: bool,
    /// Print the SkyPilot task and the command; launch nothing.
    #[arg(long)]
    dry_run: bool,
    /// group=choice and section.key=value for dlm-train; data.dir may be a local folder, gs:// or
    /// s3://.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

impl From<DlmArgs> for LaunchOptions {
    fn from(args: DlmArgs) -> Self {
        LaunchOptions {
            model: args.model,
            source: args.source,
            scale: args.scale,
            gpu: args.gpu,
            cloud: args.cloud,
            spot: args.spot,
            bucket: args.bucket,
            name: args.name,
            binary: args.binary,
            detach: args.detach,
            dry_run: args.dry_run,
            overrides: args.overrides,
        }
    }
}

/// Runs `wf` on the arguments of this process.
pub(crate) fn main() -> ExitCode {
    let arguments = match Wf::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return console::answer(&answer),
    };
    let result = match arguments.command {
        Command::Dlm(args) => launch::launch(&(*args).into()),
        Command::Logs { name, follow } => launch::logs(&name, follow),
        Command::Cancel { name } => launch::cancel(&name),
        Command::Runs { limit } => launch::runs(limit.unwrap_or(RUNS)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::message(format_args!("wf: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
