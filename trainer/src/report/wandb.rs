//! Weights & Biases, by its own Python client in a process beside the training.
//!
//! In: `report.wandb*` of the configuration, `WANDB_*` of the environment, the run's folder. Out:
//! `RUN/wandb/{settings.json,sync.py,log.txt}` and the process `python3 RUN/wandb/sync.py --follow`
//! (`DLM_PYTHON` names another interpreter), which reads metrics.jsonl as it grows. The process is
//! started again when it dies and goes on after the last step that arrived. Training waits for it
//! only at the very end, [`AT_THE_END`] at most, and never fails because of it. The API key stays
//! in the environment: neither arguments nor files hold it.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dlm_datasets::{fs, hash};
use serde_json::{Value, json};

use crate::config::{Config, WandbChoice};
use crate::error::{Error, Result};
use crate::report::console::message;

const SCRIPT: &str = include_str!("wandb_sync.py");

/// Exit code of the script where the package `wandb` is missing.
const NO_CLIENT: i32 = 3;

/// Longest wait for the process after the last step of a finished run.
const AT_THE_END: Duration = Duration::from_secs(60);
/// The same where a signal or an error ends a session: a machine that is taken away does not wait.
const AT_A_STOP: Duration = Duration::from_secs(3);
/// Wait before the second restart; doubled for each one after it.
const BEFORE_RESTART: Duration = Duration::from_secs(10);
/// Longest wait before a restart.
const LONGEST: Duration = Duration::from_secs(600);

/// The process beside a session.
pub(crate) struct Wandb {
    script: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    restarts: u32,
    not_before: Instant,
}

/// Starts reporting to W&B where the configuration or the environment asks for it; `last_step` is 0
/// for a run that begins. What prevents it is said and does not end the run.
pub(crate) fn start(cfg: &Config, last_step: u64) -> Option<Wandb> {
    let mode = mode(cfg.report.wandb, |name| std::env::var(name).ok())?;
    let prepared = prepare(cfg, mode, last_step).map(|(script, log)| Wandb {
        script,
        log,
        child: None,
        restarts: 0,
        not_before: Instant::now(),
    });
    match prepared {
        Ok(mut wandb) => {
            wandb.spawn();
            Some(wandb)
        }
        Err(error) => {
            message(format_args!("Weights & Biases gets nothing of this session: {error}"));
            None
        }
    }
}

/// `mode` of wandb.init: `None` where W&B is off, `Some(None)` where its own environment decides.
fn mode(choice: WandbChoice, env: impl Fn(&str) -> Option<String>) -> Option<Option<&'static str>> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    match choice {
        WandbChoice::Off => None,
        WandbChoice::Online => Some(Some("online")),
        WandbChoice::Offline => Some(Some("offline")),
        WandbChoice::Auto => {
            let disabled = set("WANDB_DISABLED").is_some_and(|v| v != "false" && v != "0");
            match set("WANDB_MODE").as_deref() {
                _ if disabled => None,
                Some("disabled") => None,
                Some("offline" | "dryrun") => Some(Some("offline")),
                _ => set("WANDB_API_KEY").map(|_| None),
            }
        }
    }
}

/// Writes the script and its settings; returns the paths of script and log.
fn prepare(cfg: &Config, mode: Option<&str>, last_step: u64) -> Result<(PathBuf, PathBuf)> {
    let dir = cfg.output.dir.join("wandb");
    fs::create_dir(&dir)?;
    let settings = dir.join("settings.json");
    let earlier = std::fs::read(&settings).ok().filter(|_| last_step > 0);
    let earlier: Option<Value> = earlier.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let id = named("WANDB_RUN_ID")
        .or_else(|| Some(earlier?.get("id")?.as_str()?.to_string()))
        .unwrap_or_else(|| new_id(&dir));
    let folder = cfg.output.dir.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = cfg.report.wandb_name.clone().or_else(|| named("WANDB_NAME")).or(folder);
    let project = cfg.report.wandb_project.clone().or_else(|| named("WANDB_PROJECT"));
    let text = json!({
        "id": id,
        "project": project.as_deref().unwrap_or("dlm-train"),
        "entity": cfg.report.wandb_entity,
        "name": name,
        "mode": mode,
        "config": cfg,
    });
    fs::write_atomic(&settings, format!("{text:#}\n").as_bytes())?;
    let script = dir.join("sync.py");
    fs::write_atomic(&script, SCRIPT.as_bytes())?;
    Ok((script, dir.join("log.txt")))
}

/// An id that no other run has: of time, process and folder.
fn new_id(dir: &Path) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = format!("{now:?} {} {}", std::process::id(), dir.display());
    hash::sha256(seed.as_bytes())[..12].to_string()
}

fn python() -> String {
    let named = std::env::var("DLM_PYTHON").ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "python3".into())
}

impl Wandb {
    /// Starts the process again if it died; called after every step, returns at once.
    pub(crate) fn watch(&mut self) {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                self.child = None;
                self.died(status);
            }
            Some(_) => {}
            None if self.restarts > 0 && Instant::now() >= self.not_before => self.spawn(),
            None => {}
        }
    }

    /// Tells the process that this session is over and waits for its last steps.
    pub(crate) fn end(&mut self, finished: bool) {
        self.watch();
        let Some(mut child) = self.child.take() else {
            if self.restarts > 0 {
                self.say_how_to_go_on("Weights & Biases has not got all steps");
            }
            return;
        };
        if let Some(mut stdin) = child.stdin.take()
            && finished
        {
            // a process that died meanwhile cannot be told; the wait below sees it
            let _ = stdin.write_all(b"done");
        }
        let limit = Instant::now() + if finished { AT_THE_END } else { AT_A_STOP };
        let problem = loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return,
                Ok(Some(_)) | Err(_) => break "Weights & Biases has not got all steps",
                Ok(None) if Instant::now() < limit => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(None) => break "Weights & Biases is still taking steps, in the background",
            }
        };
        if finished {
            self.say_how_to_go_on(problem);
        }
    }

    fn spawn(&mut self) {
        match self.started() {
            Ok(child) => self.child = Some(child),
            Err(error) => {
                self.restarts = 0;
                self.say_how_to_go_on(&format!("Weights & Biases gets nothing now: {error}"));
            }
        }
    }

    fn started(&self) -> Result<Child> {
        let log = File::options().append(true).create(true).open(&self.log);
        let log = log.map_err(|e| Error::io(&self.log, "opening", e))?;
        let python = python();
        let mut command = Command::new(&python);
        command.arg(&self.script).arg("--follow").stdin(Stdio::piped()).stdout(Stdio::null());
        // a group of its own: Ctrl-C in a terminal ends the training, which then tells it
        command.stderr(log).process_group(0);
        command.spawn().map_err(|e| Error::io(Path::new(&python), "starting", e))
    }

    fn died(&mut self, status: ExitStatus) {
        if status.code() == Some(NO_CLIENT) {
            self.say_how_to_go_on(&format!(
                "Weights & Biases gets nothing now: {} has no package wandb (pip install wandb)",
                python()
            ));
            return;
        }
        let wait = match self.restarts {
            0 => Duration::ZERO,
            n => (BEFORE_RESTART * 2u32.saturating_pow((n - 1).min(16))).min(LONGEST),
        };
        self.restarts += 1;
        self.not_before = Instant::now() + wait;
        if self.restarts == 1 {
            message(format_args!(
                "the process that reports to Weights & Biases ended ({status}; {}); it is started again and goes on after the last step that arrived",
                self.log.display()
            ));
        }
    }

    fn say_how_to_go_on(&self, problem: &str) {
        message(format_args!(
            "{problem}; metrics.jsonl has every step, and `{} {}` sends what is missing",
            python(),
            self.script.display()
        ));
    }
}

impl Drop for Wandb {
    /// A session that ends by an error.
    fn drop(&mut self) {
        self.end(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides_unless_the_configuration_does() {
        let found = |choice, env: &[(&str, &str)]| {
            mode(choice, |name| env.iter().find(|e| e.0 == name).map(|e| e.1.to_string()))
        };
        let key = ("WANDB_API_KEY", "k");
        use WandbChoice::{Auto, Off, Offline, Online};
        assert_eq!(found(Auto, &[]), None);
        assert_eq!(found(Auto, &[("WANDB_API_KEY", "")]), None);
        assert_eq!(found(Auto, &[key]), Some(None));
        assert_eq!(found(Auto, &[("WANDB_MODE", "offline")]), Some(Some("offline")));
        assert_eq!(found(Auto, &[("WANDB_MODE", "online")]), None);
        assert_eq!(found(Auto, &[key, ("WANDB_MODE", "disabled")]), None);
        assert_eq!(found(Auto, &[key, ("WANDB_DISABLED", "true")]), None);
        assert_eq!(found(Off, &[key]), None);
        assert_eq!(found(Online, &[]), Some(Some("online")));
        assert_eq!(found(Offline, &[key]), Some(Some("offline")));
    }
}
