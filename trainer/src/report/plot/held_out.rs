//! The charts of what evaluations say beside the loss: acceptance and tokens per forward pass over
//! the run, and acceptance by position and by share hidden at a run's last evaluation.

use dlm_datasets::chart::{Axis, Chart, Point, short};

use super::options::PlotAxis;
use super::run_data::{HeldOut, RunData};
use crate::report::held_out::{Acceptance, share};

/// A line of a chart: its colour, what it is, points and what each of them says.
struct Line {
    colour: String,
    name: String,
    points: Vec<(Point, String)>,
}

/// The charts as HTML; empty where no run was evaluated so.
pub(super) fn charts(runs: &[RunData], axis: PlotAxis) -> String {
    let x_of = |h: &HeldOut| match axis {
        PlotAxis::Step => h.step,
        PlotAxis::Tokens => h.tokens,
    };
    let over_run = |y_of: fn(&HeldOut) -> Option<(f64, String)>| -> Vec<Line> {
        let line = |(c, r): (usize, &RunData)| Line {
            colour: format!("k{c}"),
            name: r.name.clone(),
            points: r
                .held_out
                .iter()
                .filter_map(|h| y_of(h).map(|(y, said)| ((x_of(h), y), said)))
                .collect(),
        };
        runs.iter().enumerate().map(line).collect()
    };
    let accepted = over_run(|h| {
        let a = h.acceptance.as_ref()?;
        Some((100.0 * a.share, format!("{:.2} %, {} of {}", 100.0 * a.share, a.right, a.hidden)))
    });
    let per_forward = over_run(|h| {
        let d = h.decode.as_ref()?;
        let passes = format!("{} tokens in {} passes", d.tokens, d.passes);
        Some((d.tokens_per_forward, format!("{:.2}, {passes}", d.tokens_per_forward)))
    });
    let by_position = at_last(runs, |a| {
        let counted = a.by_position.iter().enumerate();
        counted.map(|(i, pair)| (i as f64, *pair)).collect()
    });
    // the middle of each tenth; a block without masks stands at 0
    let by_share = at_last(runs, |a| {
        let counted = a.by_hidden_share.iter().enumerate();
        counted.map(|(i, pair)| ((10.0 * i as f64 - 5.0).max(0.0), *pair)).collect()
    });
    [
        ("held0", "Acceptance: hidden tokens predicted right, %", accepted),
        ("held1", "Predicted tokens per forward at 0.9", per_forward),
        ("held2", "Acceptance by position in the block, %", by_position),
        ("held3", "Acceptance by share of the block hidden, %", by_share),
    ]
    .into_iter()
    .map(|(id, title, lines)| chart(id, title, &lines))
    .collect()
}

/// Acceptance at the last evaluation of each run, and of a single run at its first one too.
fn at_last(runs: &[RunData], points: fn(&Acceptance) -> Vec<(f64, [u64; 2])>) -> Vec<Line> {
    let line = |colour: String, name: String, a: &Acceptance| {
        let points = points(a).into_iter().filter(|(_, [_, all])| *all > 0);
        let points = points.map(|(x, pair)| {
            let percent = 100.0 * share(pair);
            ((x, percent), format!("{percent:.1} %, {} of {}", pair[0], pair[1]))
        });
        Line { colour, name, points: points.collect() }
    };
    let evaluated = |r: &RunData| -> Vec<(f64, Acceptance)> {
        let found = r.held_out.iter().filter_map(|h| Some((h.step, h.acceptance.clone()?)));
        found.collect()
    };
    if let [r] = runs {
        let found = evaluated(r);
        let mut ends: Vec<_> = found.last().into_iter().collect();
        ends.extend(found.first().filter(|_| found.len() > 1));
        let named = ends.into_iter().enumerate();
        return named
            .map(|(c, (step, a))| line(format!("k{c}"), format!("step {step}"), a))
            .collect();
    }
    let all = runs.iter().enumerate();
    all.filter_map(|(c, r)| {
        let (_, a) = evaluated(r).pop()?;
        Some(line(format!("k{c}"), r.name.clone(), &a))
    })
    .collect()
}

fn chart(id: &str, title: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| line.points.iter().map(|(point, _)| *point));
    let values: Vec<f64> = all().map(|point| point.1).collect();
    if values.is_empty() {
        return String::new();
    }
    let (x, y) = (Axis::exact(all().map(|p| p.0)), Axis::fit(&values, true, false, false));
    let mut chart = Chart::new(id, title, x, y);
    let mut keys = String::new();
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        let points: Vec<Point> = line.points.iter().map(|(point, _)| *point).collect();
        chart.line(&points, &format!("eval {}", line.colour));
        for (point, said) in &line.points {
            let said = format!("{}: {said} at {}", line.name, short(point.0));
            chart.dots(&[*point], &format!("dot {}", line.colour), |_| said.clone());
        }
        let name = dlm_datasets::html::escape(&line.name);
        keys.push_str(&format!("<span class=\"key {}\">{name}</span>", line.colour));
    }
    let svg = chart.finish(short, short);
    format!("<figure><figcaption><h2>{title}</h2>{keys}</figcaption>\n{svg}\n</figure>\n")
}
