//! What the tasks of all requests share.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::watch;

use super::metrics::Metrics;
use super::options::{ApiKey, Limits};
use super::schedule::{Command, Places};
use crate::generate::{GenerateOptions, ModelFiles};

/// What a server is started with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The name under which the model is served.
    pub name: String,
    /// Rows that are decoded together.
    pub slots: usize,
    /// Positions of a row, prompt and answer together.
    pub positions: usize,
    /// What a request gets that does not say. Its temperature is for requests that name neither
    /// `temperature` nor `top_p` nor `top_k`.
    pub decoding: GenerateOptions,
    pub limits: Limits,
    pub key: Option<ApiKey>,
    /// Whether only this machine can reach the server.
    pub is_loopback: bool,
}

impl Settings {
    /// Rows that the batch and the queue hold together.
    pub(super) fn most_rows(&self) -> usize {
        self.slots.saturating_add(self.limits.queue)
    }
}

/// What the tasks of all requests share.
pub(super) struct Server {
    pub(super) settings: Settings,
    pub(super) files: ModelFiles,
    pub(super) commands: Sender<Command>,
    pub(super) places: Places,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stop: watch::Sender<bool>,
    /// Seconds since 1970.
    pub(super) started: u64,
}

impl Server {
    pub(super) fn new(files: ModelFiles, settings: Settings) -> (Arc<Self>, Receiver<Command>) {
        let (commands, receiver) = crossbeam_channel::unbounded();
        let server = Server {
            settings,
            files,
            commands,
            places: Places::default(),
            metrics: Arc::default(),
            stop: watch::Sender::new(false),
            started: now(),
        };
        (Arc::new(server), receiver)
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }
}

/// A number that nobody can guess.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
