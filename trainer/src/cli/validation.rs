//! How `parity` and `eval` print a [`ValidationReport`]: one line of text, or one JSON object.

use crate::error::{Error, Result};
use crate::parity::ParityReport;
use crate::report::console;
use crate::report::held_out::in_words;
use crate::validate::{DatasetReport, ValidationReport};

/// Prints a report to stdout.
pub(super) fn print(report: &ValidationReport, json: bool) -> Result<()> {
    let line = match report {
        _ if json => serde_json::to_string(report)
            .map_err(|e| Error::format("stdout", format!("the report is no JSON: {e}")))?,
        ValidationReport::Parity(report) => differences(report),
        ValidationReport::Dataset(report) => losses(report),
    };
    console::result(line)?;
    Ok(())
}

fn differences(report: &ParityReport) -> String {
    let show = |value: Option<f64>| value.map_or("-".to_string(), |v| format!("{v:.3e}"));
    let allowed = &report.tolerances;
    let (grads, measure) = match allowed.grads_l2 {
        true => (report.grads_max_l2, "relative L2"),
        false => (report.grads_max_rel, "relative"),
    };
    format!(
        "logits {} (tolerance {:.1e}) | loss {} (relative {:.1e}) | gradients {} ({measure} {:.1e}, worst {}{}) | {}",
        show(report.logits_at_quantile),
        allowed.logits,
        show(report.loss_rel),
        allowed.loss,
        show(grads),
        allowed.grads,
        report.worst_grad.as_deref().unwrap_or("-"),
        report
            .grads_compared
            .map_or(String::new(), |n| format!(", {n} of {} parameters", report.parameters)),
        if report.ok { "ok" } else { "OUT OF TOLERANCE" },
    )
}

fn losses(report: &DatasetReport) -> String {
    let show =
        |loss: Option<f64>| loss.map_or("no counted tokens".into(), |l| format!("{l:.4} nats"));
    let words = in_words(report.acceptance.as_ref(), report.decode.as_ref());
    let comma = if words.is_empty() { "" } else { "," };
    format!(
        "{} rows of {}: block diffusion {}, causal {}{comma}{words}",
        report.rows,
        report.split.name(),
        show(report.block_diffusion_loss),
        show(report.causal_loss)
    )
}
