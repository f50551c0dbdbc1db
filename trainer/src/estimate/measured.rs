//! Speeds that were measured, for runs that are alike.
//!
//! In: `measured.json`, whose figures are those of docs/perf.md, with card, commit and date. Out:
//! the figure of the run that is closest to a plan, or nothing: nothing is scaled or guessed.

use serde::Deserialize;

use crate::diffusion::{Layout, Objective};
use crate::error::{Error, Result};

const FILE: &str = include_str!("measured.json");

/// A file of figures from one card.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Measured {
    /// The card's own name.
    pub card: String,
    /// SkyPilot's name of the card.
    gpu: String,
    pub commit: String,
    pub date: String,
    /// Where the figures come from.
    #[allow(dead_code, reason = "for readers of the file")]
    source: String,
    pub conditions: String,
    seq_len: usize,
    #[allow(dead_code, reason = "for readers of the file")]
    bd_size: usize,
    runs: Vec<Run>,
}

/// One measurement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    /// A preset of `bench`.
    pub model: String,
    pub layout: String,
    pub activation_checkpointing: bool,
    /// Rows per forward pass.
    pub rows: usize,
    /// Source tokens per second.
    pub tokens_per_s: f64,
    /// Memory of the card that was in use.
    #[cfg_attr(not(test), allow(dead_code, reason = "compared with the estimate in a test"))]
    pub gib: f64,
}

/// What a figure is looked up for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub preset: &'a str,
    pub gpu: &'a str,
    pub objective: Objective,
    pub activation_checkpointing: bool,
    pub rows: usize,
    pub seq_len: usize,
    pub bf16: bool,
}

impl Measured {
    pub(super) fn read() -> Result<Measured> {
        serde_json::from_str(FILE)
            .map_err(|e| Error::Model(format!("trainer/src/estimate/measured.json: {e}")))
    }

    /// The run alike but for the rows of a pass, with most rows up to those wanted, else fewest.
    pub(super) fn closest(&self, wanted: Wanted<'_>) -> Option<&Run> {
        let layout = match wanted.objective {
            Objective::BlockDiffusion(Layout::Saving) => "saving",
            Objective::BlockDiffusion(Layout::Reference) => "reference",
            Objective::Sft | Objective::Lossless { .. } => return None,
        };
        if wanted.gpu != self.gpu || wanted.seq_len != self.seq_len || !wanted.bf16 {
            return None;
        }
        let alike = || {
            self.runs.iter().filter(|run| {
                run.model == wanted.preset
                    && run.layout == layout
                    && run.activation_checkpointing == wanted.activation_checkpointing
            })
        };
        let below = alike().filter(|run| run.rows <= wanted.rows).max_by_key(|run| run.rows);
        below.or_else(|| alike().min_by_key(|run| run.rows))
    }

    /// Every run.
    #[cfg(test)]
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        preset: "qwen3_0.6b",
        gpu: "H100",
        objective: Objective::BlockDiffusion(Layout::Saving),
        activation_checkpointing: false,
        rows: 20,
        seq_len: 512,
        bf16: true,
    };

    #[test]
    fn only_runs_that_are_alike_are_taken() {
        let measured = Measured::read().unwrap();
        let rate = |wanted| measured.closest(wanted).map(|run| (run.rows, run.tokens_per_s));
        assert_eq!(rate(WANTED), Some((16, 57824.0)));
        assert_eq!(rate(Wanted { rows: 64, ..WANTED }), Some((32, 59524.0)));
        assert_eq!(rate(Wanted { rows: 2, ..WANTED }), Some((16, 57824.0)));
        for other in [
            Wanted { preset: "qwen2.5_0.5b", ..WANTED },
            Wanted { gpu: "H200", ..WANTED },
            Wanted { objective: Objective::Sft, ..WANTED },
            Wanted { activation_checkpointing: true, ..WANTED },
            Wanted { seq_len: 2048, ..WANTED },
            Wanted { bf16: false, ..WANTED },
        ] {
            assert_eq!(rate(other), None, "{other:?}");
        }
    }

    /// The figures are those that the measurement printed.
    #[test]
    fn figures_are_those_of_the_measurement() {
        let raw = include_str!("../../../docs/perf/h100-2026-11-26/bench.jsonl");
        let printed: Vec<serde_json::Value> = raw
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|v: &serde_json::Value| v["tokens_per_s_median"].is_f64())
            .collect();
        for run in Measured::read().unwrap().runs() {
            let of_run = |v: &&serde_json::Value| {
                v["preset"] == run.model.as_str()
                    && v["layout"] == run.layout.as_str()
                    && v["recompute"] == run.activation_checkpointing
                    && v["micro"] == run.rows
            };
            let found = printed.iter().find(of_run).unwrap_or_else(|| panic!("{run:?}"));
            let rate = found["tokens_per_s_median"].as_f64().unwrap();
            assert_eq!(rate.round(), run.tokens_per_s, "{run:?}");
            let gib = found["gpu_gib"].as_f64().unwrap();
            assert!((gib - run.gib).abs() <= 0.051, "{run:?}: {gib}");
        }
    }
}
