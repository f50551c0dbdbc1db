//! The report as one HTML file: the table of runs, and quality against speed.

use std::fmt::Write;

use dlm_datasets::chart::{Axis, Chart, Point, short};
use dlm_datasets::html::{self, escape};

use super::report::{COLUMNS, RunReport, TaskReport};
use super::runs::Whose;

/// Colours of the style sheet.
const COLOURS: usize = 6;

/// The whole page.
pub(super) fn page(report: &TaskReport) -> String {
    let rows: Vec<Vec<String>> = report.rows().iter().map(|row| row.to_vec()).collect();
    let mut body = table(&COLUMNS.map(String::from), &rows);
    body.push_str("<div class=\"charts\">\n");
    body.push_str(&chart(report, 0, "tokens per forward pass", |run| run.tokens_per_forward));
    body.push_str(&chart(report, 1, "tokens per second", |run| run.tokens_per_second));
    body.push_str("</div>\n");
    if let Some((titles, rows)) = report.kinds() {
        let _ = writeln!(
            body,
            "<section><h2>Right by kind of task</h2>{}</section>",
            table(&titles, &rows)
        );
    }
    for note in report.notes() {
        let _ = writeln!(body, "<p class=\"note\">{}</p>", escape(&note));
    }
    html::page("Answers to tasks", &report.heading(), &body)
}

/// A table with its titles.
fn table(titles: &[String], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, row: &[String]| {
        let cells = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let body: String = rows.iter().map(|row| cells("td", row)).collect();
    format!("<div class=\"scroll\"><table>\n{}{body}</table></div>\n", cells("th", titles))
}

/// Exact matches over a measure of speed: a line for each sub-block size, a dot for each run.
fn chart(report: &TaskReport, number: usize, x_name: &str, x: fn(&RunReport) -> f64) -> String {
    let percent = |run: &RunReport| 100.0 * run.exact_match;
    let runs = &report.runs;
    let y: Vec<f64> = runs.iter().map(percent).collect();
    let xs: Vec<f64> = runs.iter().map(x).collect();
    let mut chart = Chart::new(
        &format!("tasks{number}"),
        &format!("exact match over {x_name}"),
        Axis::fit(&xs, true, false, false),
        Axis::fit(&y, false, false, false),
    );
    let mut keys = String::new();
    for (colour, (name, series)) in series(runs).into_iter().enumerate() {
        let colour = colour % COLOURS;
        // in the order of the thresholds
        let points: Vec<(Point, &str)> =
            series.iter().map(|run| ((x(run), percent(run)), run.name.as_str())).collect();
        let line: Vec<Point> = points.iter().map(|point| point.0).collect();
        chart.line(&line, &format!("main k{colour}"));
        for (point, name) in &points {
            chart.dots(&[*point], &format!("dot k{colour}"), |p| {
                format!("{name}: {:.1} % at {} {x_name}", p.1, short(p.0))
            });
        }
        let _ = write!(keys, "<span class=\"key k{colour}\">{}</span>", escape(&name));
    }
    format!(
        "<figure><figcaption><h2>Exact match, %, over {x_name}</h2>{keys}</figcaption>\n{}\n</figure>\n",
        chart.finish(short, short)
    )
}

/// The runs that one line connects, with its name.
fn series(runs: &[RunReport]) -> Vec<(String, Vec<&RunReport>)> {
    let mut series: Vec<(String, Vec<&RunReport>)> = Vec::new();
    for run in runs {
        let name = match (run.of, run.sub_block_size) {
            (Whose::Source, _) => "source, ar".to_string(),
            (Whose::Model, None) => run.mode.to_string(),
            (Whose::Model, Some(size)) => match run.blocks_in_flight {
                Some(n) if n > 1 => format!("block, sub-blocks of {size}, {n} blocks in flight"),
                _ => format!("block, sub-blocks of {size}"),
            },
        };
        match series.iter_mut().find(|(known, _)| *known == name) {
            Some((_, runs)) => runs.push(run),
            None => series.push((name, vec![run])),
        }
    }
    series
}
