//! The step records of a run, read from its `metrics.jsonl`, and their smoothing.

use std::collections::BTreeMap;
use std::path::Path;

use dlm_datasets::chart::Point;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::report::held_out::{Acceptance, SimulatedDecode};

/// The plotted values of one step; absent ones are NaN. Units as in `StepRecord`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) step: f64,
    pub(super) tokens: f64,
    pub(super) loss: f64,
    pub(super) eval: f64,
    pub(super) lr: f64,
    pub(super) norm: f64,
    pub(super) clipped: bool,
    pub(super) skipped: bool,
    pub(super) tok_s: f64,
    pub(super) seconds: f64,
    pub(super) wait: f64,
    pub(super) mem: f64,
    /// Share of the counted targets whose right token had a probability above 0.9.
    pub(super) sure: f64,
}

/// What an evaluation found beside the loss.
pub(super) struct HeldOut {
    pub(super) step: f64,
    pub(super) tokens: f64,
    pub(super) acceptance: Option<Acceptance>,
    pub(super) decode: Option<SimulatedDecode>,
}

/// The step records of one run.
pub(super) struct RunData {
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
    /// In the order of their steps.
    pub(super) held_out: Vec<HeldOut>,
    /// Lines that are no step record.
    pub(super) skipped_lines: usize,
}

/// Read the records of a run: its folder, or its metrics.jsonl.
pub(super) fn read(path: &Path) -> Result<RunData> {
    let file = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_path_buf() };
    let bytes =
        std::fs::read(&file).map_err(|e| Error::io(&file, "reading the run's metrics", e))?;
    let (mut steps, mut held_out, mut skipped_lines) = (BTreeMap::new(), BTreeMap::new(), 0);
    for line in bytes.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty()) {
        let value = serde_json::from_slice::<Value>(line).unwrap_or_default();
        let Some(s) = step_of(&value) else {
            skipped_lines += 1;
            continue;
        };
        // a step that occurs twice was run again after a resume: the later record counts
        held_out.insert(s.step as u64, held_out_of(&value, &s));
        steps.insert(s.step as u64, s);
    }
    if steps.is_empty() {
        return Err(Error::format(
            &file,
            format!(
                "none of its {skipped_lines} lines is a step's record (a JSON object with step and loss); is this a run's metrics.jsonl?"
            ),
        ));
    }
    let dir = file.canonicalize().unwrap_or_else(|_| file.clone());
    let name = dir
        .parent()
        .and_then(Path::file_name)
        .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    let (steps, held_out) = (steps.into_values(), held_out.into_values());
    let held_out = held_out.filter(|h| h.acceptance.is_some() || h.decode.is_some());
    Ok(RunData { name, steps: steps.collect(), held_out: held_out.collect(), skipped_lines })
}

/// The step of a record; `None` for JSON that is no step record.
fn step_of(v: &Value) -> Option<Step> {
    let step = v.get("step")?.as_u64()? as f64;
    v.get("loss")?;
    // a loss that is not finite is null in JSON
    let number = |key: &str| v.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    Some(Step {
        step,
        tokens: number("tokens"),
        loss: number("loss"),
        eval: number("eval_loss"),
        lr: number("lr"),
        norm: number("grad_norm"),
        clipped: number("clip") < 1.0,
        skipped: v.get("skipped").and_then(Value::as_bool).unwrap_or(false),
        tok_s: number("tok_s"),
        seconds: number("seconds"),
        wait: number("data_wait"),
        mem: number("rss_mib"),
        sure: number("sure") / number("counted"),
    })
}

fn held_out_of(v: &Value, step: &Step) -> HeldOut {
    let part = |key: &str| v.get(key).cloned().unwrap_or_default();
    HeldOut {
        step: step.step,
        tokens: step.tokens,
        acceptance: serde_json::from_value(part("eval_acceptance")).ok(),
        decode: serde_json::from_value(part("eval_decode")).ok(),
    }
}

/// The loss of a step, NaN where its update was skipped.
pub(super) fn loss_unless_skipped(s: &Step) -> f64 {
    if s.skipped { f64::NAN } else { s.loss }
}

/// Running exponential sums and the sums of their weights; the mean is one over the other. The
/// memory is a fortieth of the run, at least 3 and at most 100 steps. Values that are not finite
/// are skipped.
pub(super) fn exponential_sums(values: impl ExactSizeIterator<Item = f64>) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (values.len() as f64 / 40.0).clamp(3.0, 100.0);
    let step = |acc: &mut (f64, f64), y: f64| {
        if y.is_finite() {
            *acc = (keep * acc.0 + (1.0 - keep) * y, keep * acc.1 + (1.0 - keep));
        }
        Some(*acc)
    };
    values.scan((0.0, 0.0), step).collect()
}

/// Exponential mean over the steps before and after each point, so that it does not lag.
pub(super) fn centred_mean(points: &[Point]) -> Vec<Point> {
    let before = exponential_sums(points.iter().map(|p| p.1));
    let after = exponential_sums(points.iter().rev().map(|p| p.1));
    let mean = |((p, b), a): ((&Point, (f64, f64)), (f64, f64))| {
        let weight = b.1 + a.1;
        (p.0, if weight > 0.0 { (b.0 + a.0) / weight } else { f64::NAN })
    };
    points.iter().zip(before).zip(after.into_iter().rev()).map(mean).collect()
}
