//! Answers to tasks with known answers: what a conversion keeps of the source model, and at how
//! many tokens per forward pass (`dlm-train eval --tasks`).
//!
//! In: a model, its source as the baseline, a file of tasks and the settings to compare. Out:
//! [`TaskReport`]. `task_file.rs` reads the tasks, `runs.rs` lists the settings, `answers.rs` keeps
//! completions so that a killed evaluation goes on where it was, `score.rs` judges them,
//! `report.rs` counts and prints.

mod answers;
mod judged;
mod options;
mod page;
mod report;
mod runs;
mod score;
mod task_file;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dlm_datasets::fs;
use serde_json::json;

use crate::compute::{ComputePlan, device};
use crate::decode::generate_options::{DecodeMode, GenerateOptions};
use crate::error::Result;
use crate::generate::{ModelFiles, Prompt};
use crate::report::console::message;

use answers::AnswerStore;
use judged::{Answer, Judged};
pub(crate) use options::{Baseline, TaskOptions};
use report::RunReport;
pub(crate) use report::TaskReport;
use runs::{Run, Whose};
use score::Scorer;
use task_file::Task;

/// Longest time without a line about progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// New tokens of the completion before the timed ones.
const WARM_UP: usize = 4;

/// Answers every task under every setting.
///
/// # Errors
/// [`Error::Usage`] for tasks and options that cannot be used, before any weights are read; those
/// of loading and decoding a model.
pub(crate) fn evaluate(options: &TaskOptions) -> Result<TaskReport> {
    let file = task_file::read(&options.tasks, options.limit)?;
    let scorer = Scorer::new(options.extract.as_deref(), file.is_gsm8k)?;
    let model = ModelFiles::open_adapted(&options.model, options.adapter.as_deref())?;
    let source = match runs::baseline(options, &model)? {
        // what an adapter acts on at mask tokens alone answers the same prompts without it
        Some(path) if path == options.model && model.usual_mode() == DecodeMode::Verify => {
            Some((model.without_adapter(), path))
        }
        Some(path) => Some((ModelFiles::open(&path)?, path)),
        None => None,
    };
    let source = source.filter(|(files, path)| {
        if !files.has_token_shift() {
            message(format_args!(
                "{} has no baseline: its source {} was trained without the token shift and has no autoregressive mode; name another one with --source MODEL",
                options.model.display(),
                path.display()
            ));
        }
        files.has_token_shift()
    });
    let _lock = match &options.out {
        Some(out) => {
            fs::create_dir(out)?;
            Some(fs::lock_dir(out)?)
        }
        None => None,
    };
    let mut store = AnswerStore::open(options.out.as_deref())?;
    let compute = ComputePlan::new(device::choose(&options.place.device)?, options.place.dtype);
    let place = json!({
        "device": compute.device.name,
        "dtype": compute.dtype.to_string(),
        "weights": options.place.weights.to_string(),
        "batch_size": options.decoding.batch_size,
    });
    let source_name = source.as_ref().map(|(_, path)| path.display().to_string());
    let mut sets = Vec::new();
    if let Some((files, path)) = source {
        sets.push(Set::new(Whose::Source, &path, files, options, &file.tasks)?);
    }
    sets.push(Set::new(Whose::Model, &options.model, model, options, &file.tasks)?);
    let mut reports: Vec<RunReport> = Vec::new();
    let mut baseline: Option<Vec<Judged>> = None;
    for set in sets {
        let whose = set.whose;
        for (run, answers) in set.answer(options, &place, &mut store)? {
            let judged = |(task, answer): (&Task, Answer)| {
                let score = scorer.score(&answer.text, &task.answers);
                Judged { answer, score, kind: task.kind.clone() }
            };
            let judged: Vec<Judged> = file.tasks.iter().zip(answers).map(judged).collect();
            store.record(&run, &file.tasks, &judged)?;
            reports.push(RunReport::new(&run, &judged, baseline.as_deref(), reports.first()));
            if whose == Whose::Source {
                baseline = Some(judged);
            }
        }
    }
    let report = TaskReport {
        model: options.model.display().to_string(),
        adapter: options.adapter.as_ref().map(|adapter| adapter.display().to_string()),
        source: source_name,
        tasks_file: options.tasks.display().to_string(),
        tasks: file.tasks.len(),
        scored_by: scorer.describe(),
        device: compute.device.name.clone(),
        dtype: compute.dtype.to_string(),
        batch_size: options.decoding.batch_size,
        max_new_tokens: options.decoding.max_new_tokens,
        runs: reports,
    };
    if let Some(out) = &options.out {
        fs::write_atomic(&out.join("results.json"), report.to_json()?.as_bytes())?;
        fs::write_atomic(&out.join("report.html"), page::page(&report).as_bytes())?;
    }
    Ok(report)
}

/// One model with the settings under which it answers the tasks.
struct Set {
    whose: Whose,
    path: PathBuf,
    files: ModelFiles,
    runs: Vec<Run>,
    /// Token ids of the tasks' prompts.
    prompts: Vec<Vec<i64>>,
}

impl Set {
    /// Checks the settings and encodes the prompts; the weights are not read.
    fn new(
        whose: Whose,
        path: &Path,
        files: ModelFiles,
        options: &TaskOptions,
        tasks: &[Task],
    ) -> Result<Self> {
        let runs = runs::list(whose, &files, options)?;
        let prompts: Vec<Prompt> = tasks.iter().map(|task| task.prompt.clone()).collect();
        let prompts = files.encode(&prompts, &options.decoding)?;
        // answers are compared as text
        files.codec()?;
        for run in &runs {
            files.request(&run.options)?;
        }
        let mut said: Vec<String> = Vec::new();
        let of_runs = runs.iter().flat_map(|run| files.warnings(&prompts, &run.options));
        for warning in of_runs.chain(files.other_source()) {
            if !said.contains(&warning) {
                message(format_args!("warning: {}: {warning}", path.display()));
                said.push(warning);
            }
        }
        Ok(Set { whose, path: path.to_path_buf(), files, runs, prompts })
    }

    /// The answers of every run, in the order of the tasks. The weights are read only if an answer
    /// is missing.
    fn answer(
        self,
        options: &TaskOptions,
        place: &serde_json::Value,
        store: &mut AnswerStore,
    ) -> Result<Vec<(Run, Vec<Answer>)>> {
        let Set { path, files, runs, prompts, .. } = self;
        let identity = match store.is_kept() {
            true => files.identity()?.unwrap_or_else(|| path.display().to_string()),
            false => String::new(),
        };
        let mut keys: Vec<Vec<String>> = Vec::with_capacity(runs.len());
        for run in &runs {
            let decoding = files.request(&run.options)?;
            let setting = json!({"model": identity, "place": place, "decoding": decoding});
            keys.push(prompts.iter().map(|ids| answers::key(&setting, ids)).collect());
        }
        // the text of a kept completion by the tokenizer of today
        let codec = files.codec()?.clone();
        let mut missing: Vec<Vec<&[usize]>> = Vec::with_capacity(runs.len());
        let wanted: Vec<Vec<usize>> = keys
            .iter()
            .map(|keys| (0..keys.len()).filter(|&at| !store.has(&keys[at])).collect())
            .collect();
        for (run, wanted) in runs.iter().zip(&wanted) {
            missing.push(wanted.chunks(run.options.batch_size).collect());
            message(match wanted.len() {
                0 => format!("{}: {} answers from before", run.name, prompts.len()),
                n => format!("{}: {n} of {} answers to find", run.name, prompts.len()),
            });
        }
        if wanted.iter().any(|wanted| !wanted.is_empty()) {
            let started = Instant::now();
            let mut model = files.load(&options.place)?;
            message(format_args!(
                "loaded {} on {} in {:.1} s",
                path.display(),
                model.device(),
                started.elapsed().as_secs_f64()
            ));
            for (run, _) in runs.iter().zip(&wanted).filter(|(_, wanted)| !wanted.is_empty()) {
                // what is done once, on the first passes of a kind, is not timed
                let short = GenerateOptions { max_new_tokens: WARM_UP, ..run.options.clone() };
                let first = prompts.first().cloned().unwrap_or_default();
                model.generate(&[Prompt::Ids(first)], &short)?;
            }
            let mut progress = Progress::new(wanted.iter().map(Vec::len).sum());
            let rounds = missing.iter().map(Vec::len).max().unwrap_or(0);
            // batch by batch through the runs, so that a machine which is slower for a while is
            // slower for all of them
            for round in 0..rounds {
                for ((run, keys), missing) in runs.iter().zip(&keys).zip(&missing) {
                    let Some(batch) = missing.get(round) else { continue };
                    let ids = batch.iter().map(|&at| Prompt::Ids(prompts[at].clone()));
                    let started = Instant::now();
                    let completions = model.generate(&ids.collect::<Vec<_>>(), &run.options)?;
                    let seconds = started.elapsed().as_secs_f64() / batch.len() as f64;
                    for (&at, completion) in batch.iter().zip(&completions) {
                        store.keep(&keys[at], Answer::new(completion, seconds))?;
                    }
                    progress.after(batch.len());
                }
            }
        }
        let answers = |keys: &Vec<String>| {
            let answer = |key: &String| {
                let mut answer = store.get(key)?;
                answer.text = codec.decode(&answer.completion_ids)?;
                Ok(answer)
            };
            keys.iter().map(answer).collect::<Result<Vec<_>>>()
        };
        runs.into_iter().zip(&keys).map(|(run, keys)| Ok((run, answers(keys)?))).collect()
    }
}

/// Lines about how far a model is, for people.
struct Progress {
    total: usize,
    left: usize,
    last: Instant,
}

impl Progress {
    fn new(total: usize) -> Self {
        Progress { total, left: total, last: Instant::now() }
    }

    fn after(&mut self, answers: usize) {
        self.left -= answers;
        if self.last.elapsed() >= PROGRESS_EVERY && self.left > 0 {
            message(format_args!("{} of {} answers found", self.total - self.left, self.total));
            self.last = Instant::now();
        }
    }
}
