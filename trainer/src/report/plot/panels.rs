//! The charts: one per quantity, with one line per run.

use std::fmt::Write;

use dlm_datasets::chart::{Axis, Chart, Point, scientific, short};
use dlm_datasets::html::escape;

use super::options::PlotAxis;
use super::run_data::{RunData, Step, centred_mean, loss_unless_skipped};

/// One chart.
pub(super) struct Panel {
    title: &'static str,
    value: fn(&Step) -> f64,
    /// The vertical axis starts at 0.
    zero: bool,
    /// The vertical axis may be logarithmic.
    log: bool,
    /// Draw a smoothed line over a faint line of the single steps.
    smoothed: bool,
    /// Format of axis labels.
    label: fn(f64) -> String,
}

pub(super) const PANELS: [Panel; 7] = [
    Panel {
        title: "Loss, nats per target",
        value: |s| s.loss,
        zero: false,
        log: false,
        smoothed: true,
        label: short,
    },
    Panel {
        title: "Right token above 0.9, % of hidden tokens",
        value: |s| 100.0 * s.sure,
        zero: true,
        log: false,
        smoothed: true,
        label: short,
    },
    Panel {
        title: "Learning rate",
        value: |s| s.lr,
        zero: true,
        log: false,
        smoothed: false,
        label: scientific,
    },
    Panel {
        title: "Gradient norm before clipping",
        value: |s| s.norm,
        zero: true,
        log: true,
        smoothed: true,
        label: scientific,
    },
    Panel {
        title: "Source tokens per second",
        value: |s| s.tok_s,
        zero: true,
        log: false,
        smoothed: true,
        label: short,
    },
    Panel {
        title: "Share of the step spent waiting for data, %",
        value: |s| 100.0 * s.wait / s.seconds.max(1e-9),
        zero: true,
        log: false,
        smoothed: true,
        label: short,
    },
    Panel {
        title: "Resident memory, MiB",
        value: |s| if s.mem > 0.0 { s.mem } else { f64::NAN },
        zero: true,
        log: false,
        smoothed: false,
        label: short,
    },
];

/// A chart as HTML; empty where no run has a finite value.
pub(super) fn panel(i: usize, p: &Panel, runs: &[RunData], axis: PlotAxis) -> String {
    let x_of = |s: &Step| match axis {
        PlotAxis::Step => s.step,
        PlotAxis::Tokens => s.tokens,
    };
    let points = |r: &RunData, f: fn(&Step) -> f64| {
        r.steps.iter().map(|s| (x_of(s), f(s))).collect::<Vec<Point>>()
    };
    let (is_loss, is_norm) = (i == 0, p.title.starts_with("Gradient"));
    let mut values: Vec<f64> = runs.iter().flat_map(|r| r.steps.iter().map(p.value)).collect();
    if is_loss {
        values.extend(runs.iter().flat_map(|r| r.steps.iter().map(|s| s.eval)));
    }
    if !values.iter().any(|v| v.is_finite()) {
        return String::new();
    }
    let y = Axis::fit(&values, p.zero, p.log, is_loss || is_norm);
    let above = values.iter().filter(|v| **v > y.hi).count();
    let x = Axis::exact(runs.iter().flat_map(|r| r.steps.iter().map(x_of)));
    let mut chart = Chart::new(
        &format!("clip{i}"),
        &format!(
            "{} over {}",
            p.title,
            match axis {
                PlotAxis::Step => "steps",
                PlotAxis::Tokens => "tokens",
            }
        ),
        x,
        y,
    );
    for (c, r) in runs.iter().enumerate() {
        let line = points(r, p.value);
        if p.smoothed {
            chart.line(&line, &format!("raw k{c}"));
            let line = if is_loss { points(r, loss_unless_skipped) } else { line };
            chart.line(&centred_mean(&line), &format!("main k{c}"));
        } else {
            chart.line(&line, &format!("main k{c}"));
        }
        if is_norm {
            chart.rug(r.steps.iter().filter(|s| s.clipped).map(x_of), &format!("rug k{c}"));
        }
        if is_loss {
            let evals: Vec<Point> =
                points(r, |s| s.eval).into_iter().filter(|e| e.1.is_finite()).collect();
            // a single run leaves the second colour free for evaluations
            let k = if runs.len() == 1 { 1 } else { c };
            chart.line(&evals, &format!("eval k{k}"));
            chart.dots(&evals, &format!("dot k{k}"), |e| {
                format!("{}: evaluation {:.4} at {}", r.name, e.1, short(e.0))
            });
        }
        if is_loss || is_norm {
            chart.flags(r.steps.iter().filter(|s| s.skipped).map(x_of), "flag");
        }
    }
    let any = |f: fn(&Step) -> bool| runs.iter().any(|r| r.steps.iter().any(f));
    let one = if runs.len() == 1 { " k0" } else { "" };
    let mut keys = String::new();
    let mut key = |class: &str, text: &str| {
        keys.push_str(&format!("<span class=\"key {class}\">{text}</span>"))
    };
    if p.smoothed {
        key(&format!("raw{one}"), "each step");
        key(one, "smoothed");
    }
    if is_loss && any(|s| s.eval.is_finite()) {
        key(if runs.len() == 1 { "dash k1" } else { "dash" }, "evaluation");
    }
    if is_norm && any(|s| s.clipped) {
        key("rug", "clipped");
    }
    if (is_loss || is_norm) && any(|s| s.skipped) {
        key("flag", "skipped as a spike");
    }
    if above > 0 {
        let _ = write!(keys, "<span>{above} above the axis</span>");
    }
    let svg = chart.finish(short, p.label);
    format!(
        "<figure><figcaption><h2>{}</h2>{keys}</figcaption>\n{svg}\n</figure>\n",
        escape(p.title)
    )
}
