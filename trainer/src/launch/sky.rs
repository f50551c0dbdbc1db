//! Running `sky`: launch, logs, cancel, list.
//!
//! In: a [`LaunchPlan`] or the name of a job. Out: the output of `sky`; when it fails, so does `wf`
//! (exit code 1).

use std::io::Write;

use dlm_datasets::fs;

use crate::error::{Error, Result};
use crate::report::console::{self, message};

use super::command::run;
use super::plan::{LaunchOptions, LaunchPlan};
use super::queue;
use super::task::shell_words;

/// Environment variables passed to the machine as secrets, where they are set.
const SECRETS: [&str; 1] = ["HF_TOKEN"];

/// `wf dlm`: launch a training run, or print what would be launched.
pub(crate) fn launch(options: &LaunchOptions) -> Result<()> {
    let here = std::env::current_dir()
        .map_err(|error| Error::io(".", "reading the current folder", error))?;
    let bucket = std::env::var("GCS_BUCKET").ok();
    let plan = LaunchPlan::new(options, &stamp(), bucket.as_deref(), &here)?;
    let secrets: Vec<&str> = SECRETS
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
        .collect();
    if std::env::var_os("WANDB_API_KEY").is_some_and(|value| !value.is_empty()) {
        message(format_args!(
            "wf: WANDB_API_KEY is set and not used: dlm-train does not report to Weights & Biases; its metrics are in metrics.jsonl, with report.tensorboard=true also as TensorBoard files"
        ));
    }
    let yaml = plan.yaml()?;
    let file = std::env::temp_dir().join(format!("{}.yaml", plan.name));
    let command = plan.command(&file.display().to_string(), &secrets);
    let shown = format!("{yaml}# {}\n", shell_words(&command));
    if options.dry_run {
        for obstacle in &plan.obstacles {
            message(format_args!("wf: would be refused: {obstacle}"));
        }
        return console::text(&shown).map(drop);
    }
    if !plan.obstacles.is_empty() {
        console::text(&shown)?;
        let missing: Vec<String> =
            plan.obstacles.iter().map(|obstacle| format!("\n  - {obstacle}")).collect();
        return Err(Error::Usage(format!("nothing was launched; missing:{}", missing.concat())));
    }
    let mut task = fs::create_partial(&file)?;
    task.write_all(yaml.as_bytes()).map_err(|error| Error::io(&file, "writing the task", error))?;
    drop(task);
    message(format_args!("wf: {}", shell_words(&command)));
    let bucket = plan.bucket.as_deref().unwrap_or_default();
    let launched = run(&command);
    let removed = std::fs::remove_file(&file);
    launched?;
    queue::note(&plan.name);
    if let Err(error) = removed {
        message(format_args!("wf: {} could not be removed: {error}", file.display()));
    }
    message(format_args!(
        "wf: {} in {bucket}/dlm/{}/{}; `wf logs {} -f`, `wf cancel {}`",
        plan.name, plan.model, plan.name, plan.name, plan.name
    ));
    Ok(())
}

/// `wf logs NAME [-f]`: print the log of the newest run of a name, also when it has ended.
pub(crate) fn logs(name: &str, follow: bool) -> Result<()> {
    let follow = if follow { "--follow" } else { "--no-follow" };
    let id = queue::newest(name)?.to_string();
    run(&["sky", "jobs", "logs", follow, &id].map(Into::into))
}

/// `wf cancel NAME`: stop the newest run of a name.
pub(crate) fn cancel(name: &str) -> Result<()> {
    let id = queue::newest(name)?.to_string();
    run(&["sky", "jobs", "cancel", "--yes", &id].map(Into::into))
}

/// `wf runs`: list the newest `limit` jobs.
pub(crate) fn runs(limit: usize) -> Result<()> {
    run(&["sky".into(), "jobs".into(), "queue".into(), "--limit".into(), limit.to_string()])
}

/// Seconds since 1970 in base 36: short, and names sort by time.
fn stamp() -> String {
    let mut rest = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut digits = Vec::new();
    while rest > 0 {
        digits.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
        rest /= 36;
    }
    digits.iter().rev().collect()
}
