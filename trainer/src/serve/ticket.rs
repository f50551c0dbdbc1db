//! A request while it is served.
//!
//! However a request ends (an answer, a refusal, a client that goes away), its ticket is dropped:
//! its rows end with it, and the outcome is counted once.

use std::sync::Arc;
use std::time::Instant;

use super::call::Endpoint;
use super::metrics::Metrics;
use super::outbox::Outbox;

/// See the file's comment.
pub(super) struct Ticket {
    pub outbox: Arc<Outbox>,
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    /// `cancelled` until something else is known.
    outcome: &'static str,
    came: Instant,
}

impl Ticket {
    pub(super) fn new(metrics: Arc<Metrics>, endpoint: Endpoint) -> Self {
        let outbox = Arc::default();
        Ticket { outbox, metrics, endpoint, outcome: "cancelled", came: Instant::now() }
    }

    /// How the request ended: `ok`, or the code of a refusal.
    pub(super) fn ends(&mut self, outcome: &'static str) {
        self.outcome = outcome;
    }

    /// When its body was there.
    pub(super) fn came(&self) -> Instant {
        self.came
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.outbox.cancel();
        self.metrics.request(self.endpoint.name(), self.outcome, self.came.elapsed());
    }
}
