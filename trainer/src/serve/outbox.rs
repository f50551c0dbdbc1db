//! What the model's thread has to say to one request, until the request's task takes it.
//!
//! In: [`Part`]s of each of its choices. Out: all parts so far, as soon as there is one. A reader
//! that does not read costs the memory of its own answer, which its limit of tokens bounds, and
//! never makes the model wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::refusal::Refusal;

/// One token of an answer, for `logprobs`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenText {
    /// What the token adds to the text; empty in the middle of a character.
    pub text: String,
    /// Logarithm of its probability in the pass that decided it.
    pub logprob: f32,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A stop token or a stop string.
    Stop,
    /// The limit of tokens.
    Length,
}

impl Reason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Reason::Stop => "stop",
            Reason::Length => "length",
        }
    }
}

/// What happened to a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// The next piece of a choice.
    Text { choice: usize, text: String, tokens: Vec<TokenText> },
    /// A choice is whole.
    End { choice: usize, reason: Reason, tokens: usize, passes: usize },
    /// The request cannot be answered; nothing follows.
    Failed(Refusal),
}

#[derive(Default)]
struct State {
    parts: Vec<Part>,
    waker: Option<Waker>,
}

/// See the file's comment.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    is_cancelled: AtomicBool,
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a part. Pieces of one choice that nobody took yet are joined.
    pub(super) fn push(&self, part: Part) {
        let mut state = self.state();
        match (state.parts.last_mut(), part) {
            (
                Some(Part::Text { choice, text, tokens }),
                Part::Text { choice: of, text: more, tokens: more_tokens },
            ) if *choice == of => {
                text.push_str(&more);
                tokens.extend(more_tokens);
            }
            (_, part) => state.parts.push(part),
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// All parts since the last call, at least one.
    pub(super) fn poll_parts(&self, context: &Context<'_>) -> Poll<Vec<Part>> {
        let mut state = self.state();
        if state.parts.is_empty() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut state.parts))
    }

    /// Nobody waits for the answer any more: its rows end at the next step.
    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }
}
