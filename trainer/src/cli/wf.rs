//! `wf`: launch, follow and cancel training runs and data preparation on rented machines.
//!
//! In: the command line. Out: the exit code of the process; `launch` does the work.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use dlm_prep::program_manual::{CompletionsArgs, ManArgs};

use super::plan::positive;
use crate::error::Result;
use crate::launch::{self, LaunchOptions, MachineOptions, PrepOptions, Scale, SmokeOptions};
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
    /// Prepare a dataset on rented machines: from a bucket or the hub to a bucket.
    Prep(Box<PrepArgs>),
    /// Print the log of a job, also of one that has ended.
    Logs {
        /// Name of the job or of its run [default: the newest training run].
        name: Option<String>,
        /// Keep printing new lines until the job ends.
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop a job.
    Cancel {
        /// Name of the job or of its run.
        name: String,
    },
    /// List jobs.
    Runs {
        /// Number of jobs to list [default: 10].
        #[arg(short = 'n', long)]
        limit: Option<usize>,
    },
    /// Try every step on 64 rows: prepare, train, export, decode; here, or with --cloud there.
    Smoke(Box<SmokeArgs>),
    /// Print the script that completes this program's command line in a shell.
    Completions(CompletionsArgs),
    /// Write the manual pages.
    Man(ManArgs),
}

/// Options of everything that rents a machine.
#[derive(Args, Debug)]
struct MachineArgs {
    /// Rent a spot machine, which may be taken away; the job continues on the next one.
    #[arg(long)]
    spot: bool,
    /// Name of the run; the same name continues it [default: of the time].
    #[arg(short, long)]
    name: Option<String>,
    /// The program to be sent to the machine [default: the one next to wf].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// An image that has the programs (see Dockerfile); nothing is sent.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Return once the job is submitted; do not follow its log.
    #[arg(long, overrides_with = "no_detach")]
    detach: bool,
    /// Follow the log; this is the default.
    #[arg(long)]
    no_detach: bool,
    /// Print the SkyPilot task and the command; launch nothing.
    #[arg(long)]
    dry_run: bool,
}

impl MachineArgs {
    fn options(self, cloud: String, build: bool) -> MachineOptions {
        MachineOptions {
            cloud,
            spot: self.spot,
            image: self.image,
            name: self.name,
            binary: self.binary,
            build,
            detach: self.detach && !self.no_detach,
            dry_run: self.dry_run,
        }
    }
}

/// Options of `wf dlm`.
#[derive(Args, Debug)]
struct DlmArgs {
    /// Model: a choice of configs/model (qwen3_4b, smollm2_135m …).
    #[arg(short, long)]
    model: String,
    /// Its source: folder, hf://org/name[@rev], org/name, gs://, s3:// or az://bucket/folder.
    #[arg(short, long)]
    source: Option<String>,
    /// Size of the machine: 1, 1, 2, 4 or 8 GPUs.
    #[arg(long, value_enum, default_value_t = Scale::Dev)]
    scale: Scale,
    /// Rent the GPUs of a scale that dlm-train does not use, too.
    #[arg(long)]
    allow_idle: bool,
    /// GPU model, by SkyPilot's name: H100 or H200.
    #[arg(long, default_value = "H100")]
    gpu: String,
    /// nebius, gcp, aws, runpod, lambda or kubernetes, with /region[/zone] if wanted; or any.
    #[arg(short, long, default_value = "nebius")]
    cloud: String,
    /// Bucket for checkpoints and result: gs://, s3:// or az://bucket [default: gs://$GCS_BUCKET].
    #[arg(long)]
    bucket: Option<String>,
    /// Send the repository and build dlm-train on the machine.
    #[arg(long)]
    build_on_machine: bool,
    /// Price of the machine per hour, for the estimate of the run's price.
    #[arg(long, value_name = "X", value_parser = positive)]
    price_per_hour: Option<f64>,
    #[command(flatten)]
    machine: MachineArgs,
    /// group=choice and section.key=value for dlm-train; data.dir may be a local folder, gs://,
    /// s3:// or az://.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// Options of `wf prep`.
#[derive(Args, Debug)]
struct PrepArgs {
    /// Folder of the dataset: gs://, s3:// or az://bucket/folder.
    #[arg(long)]
    out: String,
    /// Machines that share the rows.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// nebius, gcp, aws, runpod, lambda or kubernetes, with /region[/zone] if wanted; or any.
    #[arg(short, long, default_value = "nebius")]
    cloud: String,
    /// Send the repository and build dlm-prep on the machines.
    #[arg(long)]
    build_on_machine: bool,
    #[command(flatten)]
    machine: MachineArgs,
    /// Arguments of dlm-prep, such as --input gs://BUCKET/FILES --tokenizer ORG/NAME.
    #[arg(last = true, required = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// Options of `wf smoke`.
#[derive(Args, Debug)]
struct SmokeArgs {
    /// Model: a choice of configs/model; sample downloads nothing.
    #[arg(short, long, default_value = "sample")]
    model: String,
    /// Its source [default: that of the model's configuration].
    #[arg(short, long)]
    source: Option<String>,
    /// auto, cpu, cuda[:N] or wgpu.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder for what is made [default: a temporary one, removed at the end].
    #[arg(long, value_name = "DIR", conflicts_with = "cloud")]
    keep: Option<PathBuf>,
    /// Try it on a rented machine of this cloud.
    #[arg(short, long)]
    cloud: Option<String>,
    /// GPU of the rented machine, by SkyPilot's name.
    #[arg(long, default_value = "H100", requires = "cloud")]
    gpu: String,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Runs `wf` on the arguments of this process.
pub(crate) fn main() -> ExitCode {
    let arguments = match Wf::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return console::answer(&answer),
    };
    match run(arguments.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            console::message(format_args!("wf: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Dlm(args) => {
            let args = *args;
            launch::launch(&LaunchOptions {
                model: args.model,
                source: args.source,
                scale: args.scale,
                allow_idle: args.allow_idle,
                gpu: args.gpu,
                bucket: args.bucket,
                price_per_hour: args.price_per_hour,
                machine: args.machine.options(args.cloud, args.build_on_machine),
                overrides: args.overrides,
            })?;
        }
        Command::Prep(args) => {
            let args = *args;
            launch::prep(&PrepOptions {
                out: args.out,
                nodes: args.nodes,
                arguments: args.arguments,
                machine: args.machine.options(args.cloud, args.build_on_machine),
            })?;
        }
        Command::Logs { name, follow } => launch::logs(name.as_deref(), follow)?,
        Command::Cancel { name } => launch::cancel(&name)?,
        Command::Runs { limit } => launch::runs(limit.unwrap_or(RUNS))?,
        Command::Smoke(args) => {
            let args = *args;
            let options = SmokeOptions {
                model: args.model,
                source: args.source,
                device: args.device,
                keep: args.keep,
            };
            let Some(cloud) = args.cloud else { return launch::smoke(&options) };
            launch::smoke_there(&options, &args.gpu, &args.machine.options(cloud, false))?;
        }
        Command::Completions(args) => return super::print_completions(Wf::command(), &args),
        Command::Man(args) => return super::write_manual(Wf::command(), &args),
    }
    Ok(true)
}
