//! A completion, and what was made of it.

use serde::{Deserialize, Serialize};

use super::score::Score;
use crate::decode::Proposals;
use crate::decode::completion::Completion;

/// One completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) completion_ids: Vec<i64>,
    #[serde(skip)]
    pub(super) text: String,
    /// Forward passes that the prompt took part in.
    pub(super) passes: usize,
    /// Whether a stop token ended it.
    pub(super) stopped: bool,
    /// Its share of the seconds that its batch took.
    pub(super) seconds: f64,
    /// Proposals that passes verified, in verify mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) proposals: Option<Proposals>,
}

impl Answer {
    pub(super) fn new(completion: &Completion, seconds: f64) -> Self {
        Answer {
            completion_ids: completion.ids.clone(),
            text: String::new(),
            passes: completion.passes.total(),
            stopped: completion.stopped,
            seconds,
            proposals: completion.proposals,
        }
    }
}

/// A completion and what was made of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Judged {
    pub(super) answer: Answer,
    pub(super) score: Score,
    pub(super) kind: Option<String>,
}
