//! The record of one optimizer step: a line of `metrics.jsonl`.

use serde::{Deserialize, Serialize};

use crate::report::held_out::{Acceptance, SimulatedDecode};
use crate::report::proposals::ProposalAcceptance;

/// What one step measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    /// Step number, from 1.
    pub step: u64,
    /// Source tokens consumed so far: dataset tokens, padding not counted.
    pub tokens: u64,
    /// Mean loss over counted targets, nats: the cross-entropy, with distillation its mixture with
    /// the divergence.
    pub loss: f64,
    /// Mean cross-entropy, where the source is computed beside the proposals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_entropy: Option<f64>,
    /// Mean KL(source ‖ proposal), nats, there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// What the source would accept, there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposals: Option<ProposalAcceptance>,
    /// Learning rate of AdamW.
    pub lr: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Factor the gradients were scaled with (1 = not clipped).
    pub clip: f64,
    /// Counted targets.
    pub counted: usize,
    /// Counted targets whose right token had a probability above 0.9.
    #[serde(default)]
    pub sure: usize,
    /// Tokens the decoder ran on.
    pub processed: usize,
    /// Source tokens per second.
    pub tok_s: f64,
    /// Seconds the step took, waiting for data included.
    pub seconds: f64,
    /// Seconds spent waiting for data.
    pub data_wait: f64,
    /// Share of the device's peak FLOP/s (MFU), where the peak is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Resident memory, MiB.
    pub rss_mib: u64,
    /// The spike guard skipped the update.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Evaluation loss, where this step was followed by an evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Hidden tokens that the evaluation's passes predicted right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_acceptance: Option<Acceptance>,
    /// Tokens per forward pass on held-out completions, in a simulated decode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_decode: Option<SimulatedDecode>,
    /// Mean cross-entropy of the evaluation, with `objective: lossless`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_cross_entropy: Option<f64>,
    /// Mean KL(source ‖ proposal) of the evaluation, there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_divergence: Option<f64>,
    /// What the source would accept on held-out text, there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_proposals: Option<ProposalAcceptance>,
}
