//! The numbers above the charts: one list of label and value per run.

use dlm_datasets::chart::short;

use super::run_data::{HeldOut, RunData, Step, exponential_sums, loss_unless_skipped};

/// The summary of a run: labels and values.
pub(super) fn summary(r: &RunData) -> Vec<(&'static str, String)> {
    let all = |f: fn(&Step) -> f64| r.steps.iter().map(f).collect::<Vec<f64>>();
    let sum = |f: fn(&Step) -> f64| all(f).into_iter().filter(|v| v.is_finite()).sum::<f64>();
    let count = |f: fn(&Step) -> bool| r.steps.iter().filter(|s| f(s)).count();
    let share = |n: usize| format!("{n} ({:.1} %)", 100.0 * n as f64 / r.steps.len() as f64);
    let fixed = |v: f64| {
        if v.is_finite() { format!("{v:.4}") } else { "–".into() }
    };
    let recent = exponential_sums(r.steps.iter().map(loss_unless_skipped))
        .last()
        .filter(|s| s.1 > 0.0)
        .map_or(f64::NAN, |s| s.0 / s.1);
    let evals: Vec<f64> = all(|s| s.eval).into_iter().filter(|v| v.is_finite()).collect();
    let (seconds, tok_s) = (sum(|s| s.seconds), median(all(|s| s.tok_s)));
    let last = r.steps.last();
    let time = match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    };
    let mem = all(|s| s.mem).into_iter().filter(|v| *v > 0.0).fold(f64::NAN, f64::max);
    let last_of = |f: fn(&HeldOut) -> Option<String>| {
        r.held_out.iter().rev().find_map(f).unwrap_or_else(|| "–".into())
    };
    let acceptance = last_of(|h| {
        let a = h.acceptance.as_ref()?;
        Some(format!("{:.1} % of {}", 100.0 * a.share, short(a.hidden as f64)))
    });
    let per_forward = last_of(|h| Some(format!("{:.2}", h.decode.as_ref()?.tokens_per_forward)));
    vec![
        ("steps", last.map_or(String::new(), |s| format!("{}", s.step))),
        ("source tokens", short(last.map_or(f64::NAN, |s| s.tokens))),
        ("loss, last step", fixed(last.map_or(f64::NAN, |s| s.loss))),
        ("loss, smoothed", fixed(recent)),
        ("eval loss, last", fixed(evals.last().copied().unwrap_or(f64::NAN))),
        ("eval loss, best", fixed(evals.iter().copied().fold(f64::NAN, f64::min))),
        ("acceptance, last", acceptance),
        ("tokens per forward at 0.9, last", per_forward),
        ("source tok/s, median", short(tok_s)),
        ("hours per 1 B tokens", short(1e9 / tok_s / 3600.0)),
        ("time in steps", time),
        ("waiting for data", format!("{:.2} %", 100.0 * sum(|s| s.wait) / seconds.max(1e-9))),
        ("memory, peak", if mem.is_finite() { format!("{} MiB", short(mem)) } else { "–".into() }),
        ("clipped steps", share(count(|s| s.clipped))),
        ("skipped as spikes", share(count(|s| s.skipped))),
    ]
}

/// The median of the finite values.
fn median(mut v: Vec<f64>) -> f64 {
    v.retain(|x| x.is_finite());
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}
