//! The HTML page: title, summary, charts.

use std::fmt::Write;

use dlm_datasets::html::escape;

use super::options::PlotAxis;
use super::panels::{PANELS, panel};
use super::run_data::RunData;
use super::summary::summary;

const CSS: &str = include_str!("plot.css");

/// The whole page.
pub(super) fn page(runs: &[RunData], axis: PlotAxis) -> String {
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
    let skipped_lines: usize = runs.iter().map(|r| r.skipped_lines).sum();
    let skipped_lines = match skipped_lines {
        0 => String::new(),
        1 => " One line held no step record and was skipped.".to_string(),
        n => format!(" {n} lines held no step record and were skipped."),
    };
    let charts =
        PANELS.iter().enumerate().map(|(i, p)| panel(i, p, runs, axis)).collect::<String>();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{CSS}</style></head><body>\n<h1>{title}</h1>\n<p class=\"note\">Over {}. Tokens are dataset tokens consumed, padding not counted.{skipped_lines}</p>\n{head}<div class=\"charts\">\n{charts}</div>\n</body></html>\n",
        match axis {
            PlotAxis::Step => "optimizer steps",
            PlotAxis::Tokens => "source tokens",
        }
    )
}
