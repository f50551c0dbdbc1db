//! What the server counts, as Prometheus text.
//!
//! In: events of the requests and of the model's thread. Out: `/metrics` and the state of
//! `/health`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds of the histograms in seconds.
const BOUNDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// What took time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// A request, from its body to the end of its answer.
    Request,
    /// A row in the queue.
    Queue,
    /// A row, from its request to its first token.
    FirstToken,
    /// A step of the batch.
    Step,
}

impl Stage {
    const ALL: [(Stage, &'static str, &'static str); 4] = [
        (Stage::Request, "dlm_request_seconds", "From the whole request to the end of its answer."),
        (Stage::Queue, "dlm_queue_seconds", "What a row waited for a slot."),
        (
            Stage::FirstToken,
            "dlm_first_token_seconds",
            "From the request to the first token of a row.",
        ),
        (Stage::Step, "dlm_step_seconds", "A step of the batch."),
    ];
}

#[derive(Debug, Clone, Default)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[derive(Default)]
struct State {
    /// Finished requests by interface and outcome.
    requests: BTreeMap<(&'static str, &'static str), u64>,
    stages: BTreeMap<Stage, Histogram>,
    prompt_tokens: u64,
    tokens: u64,
    /// Tokens and passes of rows that ended.
    row_tokens: u64,
    row_passes: u64,
    queued: usize,
    live: usize,
    connections: usize,
    failures: u64,
    /// When the step began that the model is at.
    step: Option<Instant>,
    /// Why the model failed last, until it works again.
    failure: Option<String>,
}

/// Counters since the start.
#[derive(Default)]
pub(super) struct Metrics(Mutex<State>);

impl Metrics {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has ended.
    pub(super) fn request(&self, endpoint: &'static str, outcome: &'static str, time: Duration) {
        *self.state().requests.entry((endpoint, outcome)).or_default() += 1;
        self.seconds(Stage::Request, time);
    }

    pub(super) fn seconds(&self, stage: Stage, time: Duration) {
        self.state().stages.entry(stage).or_default().add(time.as_secs_f64());
    }

    pub(super) fn prompt_tokens(&self, count: usize) {
        self.state().prompt_tokens += count as u64;
    }

    pub(super) fn tokens(&self, count: usize) {
        self.state().tokens += count as u64;
    }

    /// A row has ended.
    pub(super) fn row(&self, tokens: usize, passes: usize) {
        let mut state = self.state();
        state.row_tokens += tokens as u64;
        state.row_passes += passes as u64;
    }

    pub(super) fn set_rows(&self, queued: usize, live: usize) {
        let mut state = self.state();
        (state.queued, state.live) = (queued, live);
    }

    pub(super) fn set_connections(&self, connections: usize) {
        self.state().connections = connections;
    }

    /// The model failed.
    pub(super) fn fails(&self, why: String) {
        let mut state = self.state();
        state.failures += 1;
        state.failure = Some(why);
    }

    /// A step of the model begins.
    pub(super) fn step_begins(&self) {
        self.state().step = Some(Instant::now());
    }

    /// A step of the model has ended, well or not.
    pub(super) fn step_ends(&self, works: bool) {
        let mut state = self.state();
        state.step = None;
        if works {
            state.failure = None;
        }
    }

    /// Why the model failed last, if it has not worked since; also that it has been at one step for
    /// longer than `patience`.
    pub(super) fn failure(&self, patience: Duration) -> Option<String> {
        let state = self.state();
        let stuck = |step: Instant| {
            let time = step.elapsed();
            let seconds = time.as_secs();
            (time > patience).then(|| format!("the model has been at one step for {seconds} s"))
        };
        state.failure.clone().or_else(|| state.step.and_then(stuck))
    }

    /// Mean seconds of a request, 1 before the first.
    pub(super) fn mean_request(&self) -> f64 {
        match self.state().stages.get(&Stage::Request) {
            Some(times) if times.count > 0 => times.sum / times.count as f64,
            _ => 1.0,
        }
    }

    /// All of it in Prometheus' text format, version 0.0.4.
    pub(super) fn text(&self, slots: usize) -> String {
        let state = self.state();
        let mut text = String::new();
        let mut block = |kind: &str, name: &str, help: &str, lines: &[(String, String)]| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let one = |value: String| [(String::new(), value)];
        let by_outcome: Vec<(String, String)> = state
            .requests
            .iter()
            .map(|((endpoint, outcome), count)| {
                let labels = format!("{{endpoint=\"{endpoint}\",outcome=\"{outcome}\"}}");
                (labels, count.to_string())
            })
            .collect();
        block("counter", "dlm_requests_total", "Requests that ended, by outcome.", &by_outcome);
        for (name, help, value) in [
            ("dlm_prompt_tokens_total", "Tokens of prompts.", state.prompt_tokens),
            ("dlm_completion_tokens_total", "Tokens that were decided.", state.tokens),
            ("dlm_ended_row_tokens_total", "Tokens of rows that ended.", state.row_tokens),
            (
                "dlm_forward_passes_total",
                "Forward passes of rows that ended, counted per row.",
                state.row_passes,
            ),
            ("dlm_model_failures_total", "Failures of the model.", state.failures),
        ] {
            block("counter", name, help, &one(value.to_string()));
        }
        let per_forward = state.row_tokens as f64 / state.row_passes.max(1) as f64;
        for (name, help, value) in [
            ("dlm_tokens_per_forward", "Tokens per pass of rows that ended.", per_forward),
            ("dlm_queue_rows", "Rows that wait for a slot.", state.queued as f64),
            ("dlm_live_rows", "Rows in the batch.", state.live as f64),
            ("dlm_slots", "Rows that the batch has room for.", slots as f64),
            ("dlm_connections", "Open connections.", state.connections as f64),
            (
                "dlm_healthy",
                "0 from a failure of the model until its next step that goes well.",
                f64::from(u8::from(state.failure.is_none())),
            ),
        ] {
            block("gauge", name, help, &one(value.to_string()));
        }
        let none = Histogram::default();
        for (stage, name, help) in Stage::ALL {
            let times = state.stages.get(&stage).unwrap_or(&none);
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
            for (count, bound) in times.counts.iter().zip(BOUNDS) {
                let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
            }
            let (count, sum) = (times.count, times.sum);
            let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_up_to_each_bound() {
        let metrics = Metrics::default();
        for seconds in [0.0005, 0.3, 0.5, 600.0] {
            metrics.seconds(Stage::Step, Duration::from_secs_f64(seconds));
        }
        metrics.request("chat", "ok", Duration::from_millis(20));
        metrics.row(12, 4);
        let text = metrics.text(8);
        for line in [
            "dlm_step_seconds_bucket{le=\"0.001\"} 1",
            "dlm_step_seconds_bucket{le=\"0.5\"} 3",
            "dlm_step_seconds_bucket{le=\"120\"} 3",
            "dlm_step_seconds_bucket{le=\"+Inf\"} 4",
            "dlm_step_seconds_count 4",
            "dlm_requests_total{endpoint=\"chat\",outcome=\"ok\"} 1",
            "dlm_tokens_per_forward 3",
            "dlm_slots 8",
            "dlm_healthy 1",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in\n{text}");
        }
    }
}
