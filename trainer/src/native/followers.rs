//! The GPUs beside the first one, where several train one model: an engine on a thread of its own
//! for each.
//!
//! In: work for an engine. Out: what it returns. Work for one engine is done in the order in which
//! it was given. The first GPU's engine stays with the caller (`present.rs`), which also evaluates.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use dlm_engine::{Engine, Options, Peer, Result as EngineResult, Shape};

use crate::error::{Error, Result};

pub(super) fn device_error(e: dlm_engine::Error) -> Error {
    Error::Device(e.to_string())
}

type Work = Box<dyn FnOnce(&mut Engine) + Send>;

/// The engines on the other GPUs.
pub(super) struct Followers {
    followers: Vec<Follower>,
    /// All engines, the first one included.
    pub(super) peers: Vec<Peer>,
}

struct Follower {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

/// What a follower will have returned.
pub(super) struct Answer<T>(Receiver<EngineResult<T>>);

impl<T> Answer<T> {
    /// Waits for it.
    pub(super) fn wait(self) -> Result<T> {
        let answer = self.0.recv().map_err(|_| gone())?;
        answer.map_err(device_error)
    }
}

fn gone() -> Error {
    Error::Device("the thread of a GPU has ended".into())
}

impl Follower {
    fn start(index: usize, shape: Shape, options: Options) -> Result<Self> {
        let (work, orders) = unbounded::<Work>();
        let (opened, answer) = bounded(1);
        let run = move || {
            let mut engine = match Engine::new(index, shape, options) {
                Ok(engine) => engine,
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            let _ = opened.send(Ok(()));
            for work in orders {
                work(&mut engine);
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("cuda:{index}"))
            .spawn(run)
            .map_err(|e| Error::Device(format!("starting the thread of cuda:{index}: {e}")))?;
        let follower = Follower { work: Some(work), thread: Some(thread) };
        Answer(answer).wait()?;
        Ok(follower)
    }

    /// Gives the engine something to do.
    fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Engine) -> EngineResult<T> + Send + 'static,
    ) -> Answer<T> {
        let (done, answer) = bounded(1);
        let work: Work = Box::new(move |engine| {
            let _ = done.send(what(engine));
        });
        if let Some(orders) = &self.work {
            // an engine that has ended leaves an answer that nobody sends
            let _ = orders.send(work);
        }
        Answer(answer)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Followers {
    /// Engines on the GPUs `indices`, as ranks 1, 2, … of a team whose first engine is `lead`.
    pub(super) fn start(
        lead: &Engine,
        indices: &[usize],
        (shape, options): (&Shape, Options),
    ) -> Result<Self> {
        let start = |(i, index): (usize, &usize)| {
            let share = dlm_engine::Share { rank: i + 1, of: indices.len() + 1 };
            Follower::start(*index, shape.clone(), Options { share, ..options })
        };
        let followers = indices.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        let mut peers = vec![lead.as_peer().map_err(device_error)?];
        for follower in &followers {
            peers.push(follower.ask(|engine| engine.as_peer()).wait()?);
        }
        lead.reach(&peers).map_err(device_error)?;
        let all = Followers { followers, peers };
        let peers = all.peers.clone();
        all.ask_all(move |engine| engine.reach(&peers)).into_iter().try_for_each(Answer::wait)?;
        Ok(all)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.followers.len()
    }

    /// Gives one engine something to do.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        follower: usize,
        what: impl FnOnce(&mut Engine) -> EngineResult<T> + Send + 'static,
    ) -> Answer<T> {
        self.followers[follower].ask(what)
    }

    /// Gives all engines the same to do.
    pub(super) fn ask_all<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Engine) -> EngineResult<T> + Clone + Send + 'static,
    ) -> Vec<Answer<T>> {
        self.followers.iter().map(|follower| follower.ask(what.clone())).collect()
    }
}
