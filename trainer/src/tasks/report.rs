//! What is counted over the answers of a run, and how it is printed.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::judged::Judged;
use super::runs::{Run, Whose};
use super::score::interval;
use crate::decode::Proposals;
use crate::decode::generate_options::DecodeMode;
use crate::error::{Error, Result};

/// Result of [`super::evaluate`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TaskReport {
    pub(super) model: String,
    pub(super) adapter: Option<String>,
    pub(super) source: Option<String>,
    pub(super) tasks_file: String,
    pub(super) tasks: usize,
    pub(super) scored_by: String,
    pub(super) device: String,
    pub(super) dtype: String,
    pub(super) batch_size: usize,
    pub(super) max_new_tokens: usize,
    pub(super) runs: Vec<RunReport>,
}

/// Counts of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RunReport {
    pub(super) name: String,
    pub(super) of: Whose,
    pub(super) mode: &'static str,
    pub(super) threshold: Option<f64>,
    pub(super) sub_block_size: Option<usize>,
    pub(super) sub_block_cache: bool,
    /// Of block mode, as the two behind it.
    pub(super) blocks_in_flight: Option<usize>,
    pub(super) fuse_prefill: bool,
    pub(super) fuse_commit: bool,
    /// Of verify mode: tokens of a pass beside the last decided one, where they were asked for.
    pub(super) propose: Option<usize>,
    /// Of verify mode: proposals that were verified, and accepted.
    pub(super) proposals: Option<Proposals>,
    pub(super) right: usize,
    /// `right` over the number of tasks.
    pub(super) exact_match: f64,
    /// 95 % confidence interval of `exact_match`.
    pub(super) interval: (f64, f64),
    /// Completions in which no answer was found.
    pub(super) without_answer: usize,
    /// Completions that no stop token ended.
    pub(super) at_limit: usize,
    /// Generated tokens.
    pub(super) tokens: usize,
    pub(super) passes: usize,
    pub(super) tokens_per_forward: f64,
    pub(super) seconds: f64,
    pub(super) tokens_per_second: f64,
    /// Comparison with the baseline, task by task.
    pub(super) beside_baseline: Option<Beside>,
    /// Right answers and tasks by kind of task.
    pub(super) kinds: BTreeMap<String, (usize, usize)>,
}

/// A run beside the baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Beside {
    /// Tasks that only this run answers right.
    pub(super) only_here: usize,
    /// Tasks that only the baseline answers right.
    pub(super) only_baseline: usize,
    /// Completions with the same tokens.
    pub(super) same_completion: usize,
    /// Tokens per second over the baseline's.
    pub(super) speed: f64,
}

impl RunReport {
    pub(super) fn new(
        run: &Run,
        judged: &[Judged],
        baseline: Option<&[Judged]>,
        baseline_report: Option<&RunReport>,
    ) -> Self {
        let count = |f: &dyn Fn(&Judged) -> bool| judged.iter().filter(|j| f(j)).count();
        let right = count(&|j| j.score.is_right);
        let tokens: usize = judged.iter().map(|j| j.answer.completion_ids.len()).sum();
        let passes: usize = judged.iter().map(|j| j.answer.passes).sum();
        let seconds: f64 = judged.iter().map(|j| j.answer.seconds).sum();
        let tokens_per_second = tokens as f64 / seconds.max(1e-9);
        let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for judged in judged {
            let Some(kind) = &judged.kind else { continue };
            let entry = kinds.entry(kind.clone()).or_default();
            entry.0 += usize::from(judged.score.is_right);
            entry.1 += 1;
        }
        let pairs = baseline.map(|baseline| judged.iter().zip(baseline).collect::<Vec<_>>());
        let beside_baseline = pairs.map(|pairs| {
            let count = |f: fn(&Judged, &Judged) -> bool| {
                pairs.iter().filter(|(here, there)| f(here, there)).count()
            };
            Beside {
                only_here: count(|here, there| here.score.is_right && !there.score.is_right),
                only_baseline: count(|here, there| !here.score.is_right && there.score.is_right),
                same_completion: count(|here, there| {
                    here.answer.completion_ids == there.answer.completion_ids
                }),
                speed: tokens_per_second / baseline_report.map_or(1.0, |b| b.tokens_per_second),
            }
        });
        let all = judged.iter().filter_map(|j| j.answer.proposals);
        let proposals = all.fold(Proposals::default(), |sum, one| Proposals {
            verified: sum.verified + one.verified,
            accepted: sum.accepted + one.accepted,
        });
        let is_block = run.options.mode == DecodeMode::Block;
        RunReport {
            name: run.name.clone(),
            of: run.whose,
            mode: run.options.mode.name(),
            threshold: is_block.then_some(run.options.threshold),
            sub_block_size: run.sub_block_size,
            sub_block_cache: is_block && run.options.sub_block_cache,
            blocks_in_flight: is_block.then_some(run.options.blocks_in_flight),
            fuse_prefill: is_block && run.options.fuse_prefill,
            fuse_commit: is_block && run.options.fuse_commit,
            propose: run.options.propose,
            proposals: (run.options.mode == DecodeMode::Verify).then_some(proposals),
            right,
            exact_match: right as f64 / judged.len().max(1) as f64,
            interval: interval(right, judged.len()),
            without_answer: count(&|j| j.score.answer.is_none()),
            at_limit: count(&|j| !j.answer.stopped),
            tokens,
            passes,
            tokens_per_forward: tokens as f64 / passes.max(1) as f64,
            seconds,
            tokens_per_second,
            beside_baseline,
            kinds,
        }
    }
}

/// Column titles of the table of runs.
pub(super) const COLUMNS: [&str; 9] = [
    "run",
    "right",
    "exact match",
    "95 % interval",
    "only here",
    "only source",
    "same text",
    "tokens/forward",
    "tokens/s",
];

impl TaskReport {
    /// The report as one JSON object.
    pub(crate) fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::format("stdout", format!("the report is no JSON: {e}")))
    }

    /// The rows of the table of runs, a text for each of [`COLUMNS`].
    pub(super) fn rows(&self) -> Vec<[String; 9]> {
        let row = |run: &RunReport| {
            let beside = |f: fn(&Beside) -> usize| {
                run.beside_baseline.as_ref().map_or("-".into(), |beside| f(beside).to_string())
            };
            [
                run.name.clone(),
                format!("{} of {}", run.right, self.tasks),
                format!("{:.1} %", 100.0 * run.exact_match),
                format!("{:.1}–{:.1} %", 100.0 * run.interval.0, 100.0 * run.interval.1),
                beside(|beside| beside.only_here),
                beside(|beside| beside.only_baseline),
                beside(|beside| beside.same_completion),
                format!("{:.2}", run.tokens_per_forward),
                match &run.beside_baseline {
                    Some(beside) => format!("{:.1} ({:.2}x)", run.tokens_per_second, beside.speed),
                    None => format!("{:.1}", run.tokens_per_second),
                },
            ]
        };
        self.runs.iter().map(row).collect()
    }

    /// One line: what was evaluated, where and how.
    pub(super) fn heading(&self) -> String {
        let source = match &self.source {
            Some(source) => format!(", beside its source {source}"),
            None => String::new(),
        };
        let adapter = match &self.adapter {
            Some(adapter) => format!(" with the adapter {adapter}"),
            None => String::new(),
        };
        format!(
            "{}{adapter} on {} tasks of {}{source}; {}, {}, batch size {}, at most {} new tokens; {}",
            self.model,
            self.tasks,
            self.tasks_file,
            self.device,
            self.dtype,
            self.batch_size,
            self.max_new_tokens,
            self.scored_by
        )
    }

    /// Sentences about runs whose numbers need one.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for run in &self.runs {
            if let Some(Proposals { verified, accepted }) = run.proposals {
                let share = |n: usize, of: usize| 100.0 * n as f64 / of.max(1) as f64;
                let equal = run.beside_baseline.as_ref().map(|beside| {
                    let same = beside.same_completion;
                    let share = share(same, self.tasks);
                    format!(
                        "{same} of {} completions ({share:.1} %) have the source's own tokens; ",
                        self.tasks
                    )
                });
                notes.push(format!(
                    "{}: {}{accepted} of {verified} verified proposals ({:.1} %) were accepted",
                    run.name,
                    equal.unwrap_or_default(),
                    share(accepted, verified)
                ));
            }
            if run.at_limit > 0 {
                notes.push(format!(
                    "{}: {} of {} completions were cut at the limit of {} tokens",
                    run.name, run.at_limit, self.tasks, self.max_new_tokens
                ));
            }
            if run.without_answer > 0 {
                notes.push(format!(
                    "{}: no answer was found in {} of {} completions",
                    run.name, run.without_answer, self.tasks
                ));
            }
        }
        notes
    }

    /// The whole report as text.
    pub(crate) fn to_text(&self) -> String {
        let mut out = self.heading();
        out.push_str("\n\n");
        let titles = COLUMNS.map(String::from);
        let rows: Vec<Vec<String>> = self.rows().iter().map(|row| row.to_vec()).collect();
        out.push_str(&aligned(&titles, &rows));
        if let Some((titles, rows)) = self.kinds() {
            out.push_str("\nright by kind of task\n");
            out.push_str(&aligned(&titles, &rows));
        }
        for note in self.notes() {
            let _ = write!(out, "\n{note}");
        }
        out.trim_end().to_string()
    }

    /// The table of right answers by kind of task: its titles and a row for each run; `None` where
    /// the tasks name at most one kind.
    pub(super) fn kinds(&self) -> Option<(Vec<String>, Vec<Vec<String>>)> {
        let first = self.runs.first().filter(|run| run.kinds.len() > 1)?;
        let titles = first.kinds.iter().map(|(kind, (_, of))| format!("{kind} (of {of})"));
        let rows = self.runs.iter().map(|run| {
            let right = first.kinds.keys().map(|kind| run.kinds.get(kind).map_or(0, |kind| kind.0));
            [run.name.clone()].into_iter().chain(right.map(|right| right.to_string())).collect()
        });
        Some((["run".to_string()].into_iter().chain(titles).collect(), rows.collect()))
    }
}

/// A table as text, a line for each row: the first column to the left, the others to the right.
fn aligned(titles: &[String], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).chain(titles.get(i));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut out = String::new();
    for cells in [titles].into_iter().chain(rows.iter().map(Vec::as_slice)) {
        for (i, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let space = " ".repeat(width - cell.chars().count());
            let _ = match i {
                0 => write!(out, "{cell}{space}"),
                _ => write!(out, "  {space}{cell}"),
            };
        }
        out.push('\n');
    }
    out
}
