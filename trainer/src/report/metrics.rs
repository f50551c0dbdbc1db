//! Progress of a run: one line per logged step on stderr, every step as one JSON object in
//! `metrics.jsonl`.
//!
//! In: a [`StepRecord`] per step. Out: the lines, a progress bar where stderr is a terminal, and
//! TensorBoard event files on request (`tensorboard.rs`). tok/s always means *source* tokens:
//! dataset tokens consumed, padding not counted. A resumed run first drops the lines of steps after
//! its checkpoint, so that the file holds each step once.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Error, Result};
use crate::report::console::message;
use crate::report::held_out::in_words;
use crate::report::proposals;
use crate::report::step_record::StepRecord;
use crate::report::tensorboard::EventFile;
use crate::report::wandb::Wandb;
use dlm_datasets::fs;

/// Reports the steps of a session.
pub(crate) struct Reporter {
    path: PathBuf,
    file: File,
    events: Option<EventFile>,
    wandb: Option<Wandb>,
    bar: Option<ProgressBar>,
    total_tokens: u64,
    max_steps: Option<u64>,
}

/// How far a run is, and its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunProgress {
    /// Steps done.
    pub step: u64,
    /// Tokens consumed.
    pub tokens: u64,
    /// Token budget.
    pub total_tokens: u64,
    /// Steps after which the run ends even when tokens are left.
    pub max_steps: Option<u64>,
}

impl Reporter {
    /// Open `metrics.jsonl` in the run's folder, keeping the lines of steps already done; with
    /// `tensorboard` an event file too.
    pub(crate) fn open(dir: &Path, progress: RunProgress, tensorboard: bool) -> Result<Self> {
        let RunProgress { step: last_step, tokens, total_tokens, max_steps } = progress;
        let path = dir.join("metrics.jsonl");
        let mut kept = Vec::new();
        if last_step > 0 && path.is_file() {
            let old = File::open(&path).map_err(|e| Error::io(&path, "opening", e))?;
            for line in BufReader::new(old).lines() {
                let line = line.map_err(|e| Error::io(&path, "reading", e))?;
                // a line cut off by a crash is not JSON; it is dropped, as are later steps
                let record = serde_json::from_str::<StepRecord>(&line);
                if record.is_ok_and(|r| r.step <= last_step) {
                    kept.extend_from_slice(line.as_bytes());
                    kept.push(b'\n');
                }
            }
        }
        fs::write_atomic(&path, &kept)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|e| Error::io(&path, "opening", e))?;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total_tokens);
            if let Ok(style) = ProgressStyle::with_template(
                "{bar:30} {human_pos}/{human_len} tokens  {percent}%  ETA {eta}",
            ) {
                bar.set_style(style);
            }
            // the speed shown is that of this session alone
            bar.set_position(tokens.min(total_tokens));
            bar.reset_eta();
            bar
        });
        let events = if tensorboard { Some(EventFile::create(dir, last_step)?) } else { None };
        Ok(Reporter { path, file, events, wandb: None, bar, total_tokens, max_steps })
    }

    /// The reporter, with a process that tells Weights & Biases too.
    pub(crate) fn with_wandb(self, wandb: Option<Wandb>) -> Self {
        Reporter { wandb, ..self }
    }

    /// Record a step, with `print` on the console too.
    pub(crate) fn step(&mut self, r: &StepRecord, print: bool) -> Result<()> {
        let mut line =
            serde_json::to_string(r).map_err(|e| Error::format(&self.path, e.to_string()))?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| Error::io(&self.path, "writing metrics", e))?;
        if let Some(events) = &mut self.events {
            events.step(r)?;
        }
        if let Some(wandb) = &mut self.wandb {
            wandb.watch();
        }
        if let Some(bar) = &self.bar {
            if let Some(steps) = self.max_steps {
                let expected = (r.tokens as f64 / r.step.max(1) as f64 * steps as f64) as u64;
                bar.set_length(expected.min(self.total_tokens).max(r.tokens));
            }
            bar.set_position(r.tokens);
        }
        if print {
            let mfu = r.mfu.map_or(String::new(), |m| format!(" mfu {:.1}%", m * 100.0));
            let eval = r.eval_loss.map_or(String::new(), |l| {
                let words = in_words(r.eval_acceptance.as_ref(), r.eval_decode.as_ref());
                let proposed = r.eval_proposals.as_ref();
                let parts = proposals::parts_in_words(r.eval_cross_entropy, r.eval_divergence);
                let proposed = proposed.map_or(String::new(), proposals::in_words);
                format!(" eval {l:.4}{parts}{words}{proposed}")
            });
            let parts = proposals::parts_in_words(r.cross_entropy, r.divergence);
            let accepted = r
                .proposals
                .as_ref()
                .map_or(String::new(), |p| format!(" accepted {:.1}%", 100.0 * p.share));
            let skipped = if r.skipped { " SKIPPED (spike)" } else { "" };
            self.message(&format!(
                "step {} tokens {} ({:.1}%) loss {:.4}{parts}{accepted} lr {:.2e} gnorm {:.3} tok/s {:.0}{mfu} mem {} MiB wait {:.1}%{eval}{skipped}",
                r.step,
                r.tokens,
                100.0 * r.tokens as f64 / self.total_tokens.max(1) as f64,
                r.loss,
                r.lr,
                r.grad_norm,
                r.tok_s,
                r.rss_mib,
                100.0 * r.data_wait / r.seconds.max(1e-9),
            ));
        }
        Ok(())
    }

    /// The run is finished: waits for what Weights & Biases has not got yet, for a minute at most.
    pub(crate) fn end(&mut self) {
        if let Some(mut wandb) = self.wandb.take() {
            wandb.end(true);
        }
    }

    /// Print a line above the progress bar.
    pub(crate) fn message(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| message(line)),
            None => message(line),
        }
    }

    /// Flush the metrics to disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, "flushing metrics", e))?;
        self.events.as_ref().map_or(Ok(()), EventFile::sync)
    }
}

/// Resident memory of this process in MiB; 0 where the system does not report it.
pub(crate) fn resident_mib() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            s.lines().find_map(|l| {
                l.strip_prefix("VmRSS:")
                    .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
            })
        })
        .map_or(0, |kib| kib / 1024)
}
