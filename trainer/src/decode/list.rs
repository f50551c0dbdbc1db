//! A list of requests, decoded some at a time.
//!
//! In: [`Request`]s. Out: what happens to each, by its place in the list. As soon as a row ends the
//! next request of the list takes its slot, so that no row waits for the longest of a batch.

use std::collections::HashMap;
use std::time::Instant;

use super::continuous::{Continuous, Event, Request, RowId};
use super::engine::Engine;
use crate::error::{Error, Result};

/// What a step did for a request.
#[derive(Debug)]
pub(crate) struct Told {
    /// Place of the request in the list.
    pub at: usize,
    /// Seconds since the request was begun.
    pub seconds: f64,
    pub event: Event,
}

/// Decodes `requests` in the order of the list, at most `slots` at a time. All of them are checked
/// before the first is begun. Stops early where `tell` returns false.
///
/// # Errors
/// [`Error::Usage`], which names the prompt by its place, and those of [`Continuous::step`].
pub(crate) fn decode_list(
    engine: &mut Engine,
    slots: usize,
    requests: Vec<Request>,
    mut tell: impl FnMut(Told) -> Result<bool>,
) -> Result<()> {
    let longest = requests.iter().map(Request::positions).max().unwrap_or(0);
    let mut rows = Continuous::new(slots.min(requests.len()), longest);
    for (at, request) in requests.iter().enumerate() {
        rows.check(engine, request).map_err(|error| match error {
            Error::Usage(what) => Error::Usage(format!("prompt {at}: {what}")),
            other => other,
        })?;
    }
    let mut waiting = requests.into_iter().enumerate();
    let mut begun: HashMap<RowId, (usize, Instant)> = HashMap::new();
    loop {
        while rows.free_slots() > 0
            && let Some((at, request)) = waiting.next()
        {
            begun.insert(rows.add(engine, request)?, (at, Instant::now()));
        }
        if rows.is_empty() {
            return Ok(());
        }
        for event in rows.step(engine)? {
            let (Event::Tokens { row, .. } | Event::Finished { row, .. }) = &event;
            let Some((at, started)) = begun.get(row) else { continue };
            let seconds = started.elapsed().as_secs_f64();
            if !tell(Told { at: *at, seconds, event })? {
                return Ok(());
            }
        }
    }
}
