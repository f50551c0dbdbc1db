//! The HTML page: title, summary, charts.

use std::fmt::Write;

use dlm_datasets::html::{self, escape};

use super::held_out;
use super::options::PlotAxis;
use super::panels::{PANELS, panel};
use super::run_data::RunData;
use super::summary::summary;

/// The whole page.
pub(super) fn page(runs: &[RunData], axis: PlotAxis) -> String {
    let names: Vec<String> = runs.iter().map(|r| escape(&r.name)).collect();
    let title = runs.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut head = String::new();
    if let [r] = runs {
        head.push_str(&html::tiles(summary(r)));
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
    let mut charts: Vec<String> =
        PANELS.iter().enumerate().map(|(i, p)| panel(i, p, runs, axis)).collect();
    // beside the loss and the share of sure tokens, which come first
    charts.insert(2, held_out::charts(runs, axis));
    let charts = charts.concat();
    let over = match axis {
        PlotAxis::Step => "optimizer steps",
        PlotAxis::Tokens => "source tokens",
    };
    html::page(
        &title,
        &format!(
            "Over {over}. Tokens are dataset tokens consumed, padding not counted.{skipped_lines}"
        ),
        &format!("{head}<div class=\"charts\">\n{charts}</div>\n"),
    )
}
