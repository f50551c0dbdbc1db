//! `dlm-train plot RUN…`: what a run measured, as one HTML file that needs nothing else.
//!
//! In: `metrics.jsonl` of one or several runs. Out: loss, learning rate, gradient norm, source
//! tokens per second, data wait and memory over steps or tokens, as inline SVG in the reader's
//! light or dark colours, under a summary. Lines that are not a step's record (a last line cut by a
//! crash) are left out and counted.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::error::{Error, Result};
use dlm_datasets::chart::{Axis, Chart, Point, scientific, short};
use dlm_datasets::fs;
use dlm_datasets::html::escape;

const CSS: &str = include_str!("plot.css");
/// Runs that one page can tell apart by colour.
const MAX_RUNS: usize = 6;

/// Options of `dlm-train plot`.
#[derive(Args, Debug)]
pub struct PlotArgs {
    /// Folders of runs (output.dir), or their metrics.jsonl; several are laid over each other.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// File to write; default: report.html in the first run's folder.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Horizontal axis.
    #[arg(long, default_value = "step", value_parser = ["step", "tokens"])]
    pub x: String,
}

/// One step as far as its record says; what is absent is NaN.
#[derive(Clone, Copy, Debug)]
struct Step {
    step: f64,
    tokens: f64,
    loss: f64,
    eval: f64,
    lr: f64,
    norm: f64,
    clipped: bool,
    skipped: bool,
    tok_s: f64,
    seconds: f64,
    wait: f64,
    mem: f64,
}

struct RunData {
    name: String,
    steps: Vec<Step>,
    unread: usize,
}

/// Run.
pub fn run(args: &PlotArgs) -> Result<bool> {
    if args.runs.len() > MAX_RUNS {
        return Err(Error::Usage(format!(
            "{} runs were given; one page shows at most {MAX_RUNS}",
            args.runs.len()
        )));
    }
    let mut runs = args.runs.iter().map(|p| read(p)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = runs.iter().map(|r| r.name.clone()).collect();
    for (r, path) in runs.iter_mut().zip(&args.runs) {
        if names.iter().filter(|n| **n == r.name).count() > 1 {
            r.name = path.display().to_string();
        }
    }
    let out = args.out.clone().unwrap_or_else(|| {
        let first = &args.runs[0];
        let dir =
            if first.is_dir() { first.as_path() } else { first.parent().unwrap_or(Path::new("")) };
        dir.join("report.html")
    });
    for r in runs.iter().filter(|r| r.unread > 0) {
        eprintln!("{}: {} of its lines hold no step record and were left out", r.name, r.unread);
    }
    fs::write_atomic(&out, page(&runs, args.x == "tokens").as_bytes())?;
    println!("{}", out.display());
    Ok(true)
}

fn read(path: &Path) -> Result<RunData> {
    let file = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_path_buf() };
    let bytes =
        std::fs::read(&file).map_err(|e| Error::io(&file, "reading the run's metrics", e))?;
    let (mut steps, mut unread) = (BTreeMap::new(), 0);
    for line in bytes.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty()) {
        match serde_json::from_slice::<Value>(line).ok().and_then(|v| step_of(&v)) {
            // a step that is there twice was run again after a resume: the later record holds
            Some(s) => drop(steps.insert(s.step as u64, s)),
            None => unread += 1,
        }
    }
    if steps.is_empty() {
        return Err(Error::format(
            &file,
            format!(
                "none of its {unread} lines is a step's record (a JSON object with step and loss); is this a run's metrics.jsonl?"
            ),
        ));
    }
    let dir = file.canonicalize().unwrap_or_else(|_| file.clone());
    let name = dir
        .parent()
        .and_then(Path::file_name)
        .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    Ok(RunData { name, steps: steps.into_values().collect(), unread })
}

fn step_of(v: &Value) -> Option<Step> {
    let step = v.get("step")?.as_u64()? as f64;
    v.get("loss")?;
    // a loss that is not finite is null in JSON
    let n = |key: &str| v.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    Some(Step {
        step,
        tokens: n("tokens"),
        loss: n("loss"),
        eval: n("eval_loss"),
        lr: n("lr"),
        norm: n("grad_norm"),
        clipped: n("clip") < 1.0,
        skipped: v.get("skipped").and_then(Value::as_bool).unwrap_or(false),
        tok_s: n("tok_s"),
        seconds: n("seconds"),
        wait: n("data_wait"),
        mem: n("rss_mib"),
    })
}

fn median(mut v: Vec<f64>) -> f64 {
    v.retain(|x| x.is_finite());
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}

/// Exponential sums and their weights with a memory of a fortieth of the run, 3 to 100 steps; skips
/// what is not finite.
fn sums(values: impl ExactSizeIterator<Item = f64>) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (values.len() as f64 / 40.0).clamp(3.0, 100.0);
    let step = |acc: &mut (f64, f64), y: f64| {
        if y.is_finite() {
            *acc = (keep * acc.0 + (1.0 - keep) * y, keep * acc.1 + (1.0 - keep));
        }
        Some(*acc)
    };
    values.scan((0.0, 0.0), step).collect()
}

/// The exponential mean of what came up to each step and from it on, which does not lag behind.
fn centred(points: &[Point]) -> Vec<Point> {
    let before = sums(points.iter().map(|p| p.1));
    let after = sums(points.iter().rev().map(|p| p.1));
    let mean = |((p, b), a): ((&Point, (f64, f64)), (f64, f64))| {
        let weight = b.1 + a.1;
        (p.0, if weight > 0.0 { (b.0 + a.0) / weight } else { f64::NAN })
    };
    points.iter().zip(before).zip(after.into_iter().rev()).map(mean).collect()
}

/// Loss of a step that moved the weights.
fn used_loss(s: &Step) -> f64 {
    if s.skipped { f64::NAN } else { s.loss }
}

/// What the summary says of a run: label and text.
fn summary(r: &RunData) -> Vec<(&'static str, String)> {
    let all = |f: fn(&Step) -> f64| r.steps.iter().map(f).collect::<Vec<f64>>();
    let sum = |f: fn(&Step) -> f64| all(f).into_iter().filter(|v| v.is_finite()).sum::<f64>();
    let count = |f: fn(&Step) -> bool| r.steps.iter().filter(|s| f(s)).count();
    let share = |n: usize| format!("{n} ({:.1} %)", 100.0 * n as f64 / r.steps.len() as f64);
    let fixed = |v: f64| {
        if v.is_finite() { format!("{v:.4}") } else { "–".into() }
    };
    let recent = sums(r.steps.iter().map(used_loss))
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
    vec![
        ("steps", last.map_or(String::new(), |s| format!("{}", s.step))),
        ("source tokens", short(last.map_or(f64::NAN, |s| s.tokens))),
        ("loss, last step", fixed(last.map_or(f64::NAN, |s| s.loss))),
        ("loss, smoothed", fixed(recent)),
        ("eval loss, last", fixed(evals.last().copied().unwrap_or(f64::NAN))),
        ("eval loss, best", fixed(evals.iter().copied().fold(f64::NAN, f64::min))),
        ("source tok/s, median", short(tok_s)),
        ("hours per 1 B tokens", short(1e9 / tok_s / 3600.0)),
        ("time in steps", time),
        ("waiting for data", format!("{:.2} %", 100.0 * sum(|s| s.wait) / seconds.max(1e-9))),
        ("memory, peak", if mem.is_finite() { format!("{} MiB", short(mem)) } else { "–".into() }),
        ("clipped steps", share(count(|s| s.clipped))),
        ("skipped as spikes", share(count(|s| s.skipped))),
    ]
}

/// One quantity over the runs.
struct Panel {
    title: &'static str,
    of: fn(&Step) -> f64,
    /// The vertical axis starts at 0; may be logarithmic.
    zero: bool,
    log: bool,
    /// Draw each step faintly under a smoothed line.
    smoothed: bool,
    text: fn(f64) -> String,
}

const PANELS: [Panel; 6] = [
    Panel {
        title: "Loss, nats per target",
        of: |s| s.loss,
        zero: false,
        log: false,
        smoothed: true,
        text: short,
    },
    Panel {
        title: "Learning rate",
        of: |s| s.lr,
        zero: true,
        log: false,
        smoothed: false,
        text: scientific,
    },
    Panel {
        title: "Gradient norm before clipping",
        of: |s| s.norm,
        zero: true,
        log: true,
        smoothed: true,
        text: scientific,
    },
    Panel {
        title: "Source tokens per second",
        of: |s| s.tok_s,
        zero: true,
        log: false,
        smoothed: true,
        text: short,
    },
    Panel {
        title: "Share of the step spent waiting for data, %",
        of: |s| 100.0 * s.wait / s.seconds.max(1e-9),
        zero: true,
        log: false,
        smoothed: true,
        text: short,
    },
    Panel {
        title: "Resident memory, MiB",
        of: |s| if s.mem > 0.0 { s.mem } else { f64::NAN },
        zero: true,
        log: false,
        smoothed: false,
        text: short,
    },
];

fn panel(i: usize, p: &Panel, runs: &[RunData], tokens: bool) -> String {
    let x_of = |s: &Step| if tokens { s.tokens } else { s.step };
    let points = |r: &RunData, f: fn(&Step) -> f64| {
        r.steps.iter().map(|s| (x_of(s), f(s))).collect::<Vec<Point>>()
    };
    let (is_loss, is_norm) = (i == 0, p.title.starts_with("Gradient"));
    let mut values: Vec<f64> = runs.iter().flat_map(|r| r.steps.iter().map(p.of)).collect();
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
        &format!("{} over {}", p.title, if tokens { "tokens" } else { "steps" }),
        x,
        y,
    );
    for (c, r) in runs.iter().enumerate() {
        let line = points(r, p.of);
        if p.smoothed {
            chart.line(&line, &format!("raw k{c}"));
            let line = if is_loss { points(r, used_loss) } else { line };
            chart.line(&centred(&line), &format!("main k{c}"));
        } else {
            chart.line(&line, &format!("main k{c}"));
        }
        if is_norm {
            chart.rug(r.steps.iter().filter(|s| s.clipped).map(x_of), &format!("rug k{c}"));
        }
        if is_loss {
            let evals: Vec<Point> =
                points(r, |s| s.eval).into_iter().filter(|e| e.1.is_finite()).collect();
            // one run has colours to spare
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
    let svg = chart.finish(short, p.text);
    format!(
        "<figure><figcaption><h2>{}</h2>{keys}</figcaption>\n{svg}\n</figure>\n",
        escape(p.title)
    )
}

fn page(runs: &[RunData], tokens: bool) -> String {
    let names: Vec<String> = runs.iter().map(|r| escape(&r.name)).collect();
    let title = names.join(", ");
    let mut head = String::new();
    if let [r] = runs {
        let tiles = summary(r)
            .into_iter()
            .map(|(k, v)| format!("<div class=\"tile\"><b>{v}</b><span>{k}</span></div>\n"));
        let _ = write!(head, "<div class=\"tiles\">\n{}</div>\n", tiles.collect::<String>());
    } else {
        let columns = runs.first().map(summary).unwrap_or_default();
        let cells = columns.iter().map(|(k, _)| format!("<th>{k}</th>")).collect::<String>();
        let _ = writeln!(head, "<div class=\"scroll\"><table><tr><th>run</th>{cells}</tr>");
        for (c, (r, name)) in runs.iter().zip(&names).enumerate() {
            let cells =
                summary(r).into_iter().map(|(_, v)| format!("<td>{v}</td>")).collect::<String>();
            let _ =
                writeln!(head, "<tr><td><span class=\"key k{c}\">{name}</span></td>{cells}</tr>");
        }
        head.push_str("</table></div>\n");
    }
    let unread: usize = runs.iter().map(|r| r.unread).sum();
    let unread = match unread {
        0 => String::new(),
        1 => " One line held no step record and was left out.".to_string(),
        n => format!(" {n} lines held no step record and were left out."),
    };
    let charts =
        PANELS.iter().enumerate().map(|(i, p)| panel(i, p, runs, tokens)).collect::<String>();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{CSS}</style></head><body>\n<h1>{title}</h1>\n<p class=\"note\">Over {}. Tokens are dataset tokens consumed, padding not counted.{unread}</p>\n{head}<div class=\"charts\">\n{charts}</div>\n</body></html>\n",
        if tokens { "source tokens" } else { "optimizer steps" }
    )
}
