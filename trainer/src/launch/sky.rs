//! Running `sky`: launch, logs, cancel, list.
//!
//! In: a plan or the name of a job. Out: the output of `sky`; when it fails, so does `wf` (exit
//! code 1).

use std::io::Write;
use std::path::PathBuf;

use dlm_datasets::fs;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::estimate;
use crate::report::console::{self, message};

use super::command::{run, run_with};
use super::plan::{LaunchOptions, LaunchPlan, MachineOptions, job_name, machine};
use super::prep::{PrepOptions, PrepPlan};
use super::program::{self, Wanted};
use super::queue;
use super::scale::{check_name, check_word, stamp};
use super::secrets::Secrets;
use super::smoke::SmokeOptions;
use super::task::{Task, launch_command, shell_words, yaml};

/// A task ready to be launched.
struct Ready<'a> {
    job: &'a str,
    task: Value,
    secrets: Secrets,
    obstacles: Vec<String>,
    options: &'a MachineOptions,
    /// Where the result will be, for people.
    result: String,
}

/// `wf dlm`: launch a training run, or print what would be launched.
pub(crate) fn launch(options: &LaunchOptions) -> Result<()> {
    let default = std::env::var("GCS_BUCKET").ok();
    let (mut plan, config) = LaunchPlan::new(options, &stamp(), default.as_deref(), &here()?)?;
    let gpus = options.scale.gpus();
    let estimate = estimate::for_launch(&config, &options.gpu, gpus, plan.seq_len());
    if let Some(estimate) = &estimate {
        for line in estimate.lines(options.price_per_hour) {
            message(format_args!("wf: {line}"));
        }
        plan.obstacles.extend(estimate.obstacle());
    }
    let secrets = Secrets::of(plan.buckets().into_iter(), plan.wandb);
    let missing = missing(&secrets, &plan.buckets(), plan.machine.infra.as_deref());
    plan.obstacles.extend(missing);
    let task = plan.task(|name| std::env::var(name).ok(), estimate.map(|e| e.disk_gb()))?;
    let ready = Ready {
        job: &plan.job,
        task,
        secrets,
        obstacles: plan.obstacles.clone(),
        options: &options.machine,
        result: plan.remote().unwrap_or_default(),
    };
    ready.launch()
}

/// `wf prep`: prepare a dataset on rented machines.
pub(crate) fn prep(options: &PrepOptions) -> Result<()> {
    let mut plan = PrepPlan::new(options, &stamp(), &here()?)?;
    let secrets = Secrets::of(plan.buckets().into_iter(), false);
    let missing = missing(&secrets, &plan.buckets(), plan.machine.infra.as_deref());
    plan.obstacles.extend(missing);
    let task = plan.task()?;
    let ready = Ready {
        job: &plan.job,
        task,
        secrets,
        obstacles: plan.obstacles.clone(),
        options: &options.machine,
        result: plan.out.clone(),
    };
    ready.launch()
}

/// `wf smoke --cloud …`: the smoke test on a rented machine.
pub(crate) fn smoke_there(smoke: &SmokeOptions, gpu: &str, options: &MachineOptions) -> Result<()> {
    const FILE: &str = "launch/smoke.yaml";
    let mut obstacles = Vec::new();
    check_word("--gpu", gpu, "a GPU by SkyPilot's name, such as H100")?;
    let wanted = Wanted {
        names: &["dlm-train", "dlm-prep", "wf"],
        binary: options.binary.as_deref(),
        image: options.image.is_some(),
        build: false,
        needs_burn: false,
        gpu: Some(gpu),
    };
    let programs = program::find(wanted, &here()?, &mut obstacles)?;
    let run = options.name.clone().unwrap_or_else(stamp);
    check_name("--name", &run)?;
    let job = job_name("smoke", &smoke.model, &run);
    let mut task = Task::new(FILE)?;
    task.machine(&job, &machine(options, Some(format!("{gpu}:1")), 1)?)?;
    task.programs(&programs)?;
    task.env("MODEL", &smoke.model)?;
    task.env("DEVICE", if smoke.device == "auto" { "cuda" } else { &smoke.device })?;
    let ready = Ready {
        job: &job,
        task: task.tree(),
        secrets: Secrets::of(std::iter::empty(), false),
        obstacles,
        options,
        result: String::new(),
    };
    ready.launch()
}

impl Ready<'_> {
    fn launch(&self) -> Result<()> {
        let text = yaml(&self.task)?;
        let file: PathBuf = std::env::temp_dir().join(format!("{}.yaml", self.job));
        let names = self.secrets.names();
        let command =
            launch_command(self.job, self.options.detach, names, &file.display().to_string());
        let shown = format!("{text}# {}\n", shell_words(&command));
        if self.options.dry_run {
            for obstacle in &self.obstacles {
                message(format_args!("wf: would be refused: {obstacle}"));
            }
            return console::text(&shown).map(drop);
        }
        if !self.obstacles.is_empty() {
            console::text(&shown)?;
            let missing: Vec<String> =
                self.obstacles.iter().map(|obstacle| format!("\n  - {obstacle}")).collect();
            return Err(Error::Usage(format!(
                "nothing was launched; in the way:{}",
                missing.concat()
            )));
        }
        let mut task = fs::create_partial(&file)?;
        task.write_all(text.as_bytes())
            .map_err(|error| Error::io(&file, "writing the task", error))?;
        drop(task);
        message(format_args!("wf: {}", shell_words(&command)));
        let launched = run_with(&command, self.secrets.environment());
        let removed = std::fs::remove_file(&file);
        launched?;
        if let Err(error) = removed {
            message(format_args!("wf: {} could not be removed: {error}", file.display()));
        }
        let place =
            if self.result.is_empty() { String::new() } else { format!(" to {}", self.result) };
        message(format_args!(
            "wf: {}{place}; `wf logs {} -f`, `wf cancel {}`",
            self.job, self.job, self.job
        ));
        Ok(())
    }
}

/// Buckets that the machine could not open, as obstacles, each once.
fn missing(secrets: &Secrets, buckets: &[&str], infra: Option<&str>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for bucket in buckets {
        let missing = secrets.missing_for(bucket, infra);
        found.extend(missing.filter(|missing| !found.contains(missing)));
    }
    found
}

fn here() -> Result<PathBuf> {
    std::env::current_dir().map_err(|error| Error::io(".", "reading the current folder", error))
}

/// `wf logs [NAME] [-f]`: print the log of the newest job of a name, also when it has ended.
pub(crate) fn logs(name: Option<&str>, follow: bool) -> Result<()> {
    let follow = if follow { "--follow" } else { "--no-follow" };
    let id = queue::newest(name)?.to_string();
    run(&["sky", "jobs", "logs", follow, &id].map(Into::into))
}

/// `wf cancel NAME`: stop the newest job of a name.
pub(crate) fn cancel(name: &str) -> Result<()> {
    let id = queue::newest(Some(name))?.to_string();
    run(&["sky", "jobs", "cancel", "--yes", &id].map(Into::into))
}

/// `wf runs`: list the newest `limit` jobs.
pub(crate) fn runs(limit: usize) -> Result<()> {
    run(&["sky".into(), "jobs".into(), "queue".into(), "--limit".into(), limit.to_string()])
}
