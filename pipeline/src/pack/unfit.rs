//! Errors for inputs that are not worth training on, with their likely cause.

use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::parse::drop_reason::DropReason;
use dlm_datasets::manifest::{Counts, Manifest};

/// Refuses totals of a whole run: no rows, too many conversations without any token to learn from
/// (`unsupervised` of them), or nothing kept.
pub(crate) fn check_totals(settings: &Settings, m: &Manifest, unsupervised: u64) -> Result<()> {
    let c = &m.counts;
    if c.rows_read == 0 {
        return Err(Error::Unfit("the inputs hold no rows".to_string()));
    }
    let too_long = dropped(c, DropReason::PromptTooLong);
    if settings.too_many_unsupervised(unsupervised as f64, too_long as f64, c.rows_read as f64) {
        return Err(too_many_unsupervised(settings, m, unsupervised));
    }
    if c.rows_kept == 0 {
        let mut reasons: Vec<_> = c.dropped.iter().collect();
        reasons.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let example = |reason: &str| match m.drop_examples.get(reason) {
            Some(e) if !e.message.is_empty() => {
                format!(" (first in {} row {}: {})", e.file, e.row, e.message)
            }
            _ => String::new(),
        };
        let reasons: Vec<String> =
            reasons.iter().map(|(k, n)| format!("{n} {k}{}", example(k))).collect();
        return Err(Error::Unfit(format!(
            "all {} rows were dropped: {}",
            c.rows_read,
            reasons.join(", ")
        )));
    }
    Ok(())
}

/// The error for too many conversations without any token to learn from.
pub(crate) fn too_many_unsupervised(settings: &Settings, m: &Manifest, unsupervised: u64) -> Error {
    let c = &m.counts;
    let too_long = dropped(c, DropReason::PromptTooLong);
    let cause = if too_long * 2 > unsupervised {
        format!(
            "{too_long} prompts fill a whole row of {}: raise --seq-len, or use --over-long split",
            m.seq_len
        )
    } else if dropped(c, DropReason::NoAssistantSpan) * 2 > unsupervised {
        "the assistant's text cannot be located in what the chat template renders: use a template with {% generation %} tags, or --template chatml"
            .to_string()
    } else {
        "no assistant text carries loss: the template may not show it, or --loss-on last meets conversations that end with another role"
            .to_string()
    };
    let share = 100.0 * unsupervised as f64 / c.rows_read.max(1) as f64;
    Error::Unfit(format!(
        "{unsupervised} of {} conversations ({share:.1} %) have no token to learn from, more than the {:.0} % allowed (--max-unsupervised). Likely cause: {cause}",
        c.rows_read,
        100.0 * settings.max_unsupervised
    ))
}

fn dropped(c: &Counts, reason: DropReason) -> u64 {
    c.dropped.get(reason.name()).copied().unwrap_or(0)
}
