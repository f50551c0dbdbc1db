//! Time on the GPU by kernel, measured with events around every launch; off unless asked for.
#![allow(unsafe_code, reason = "the CUDA driver is a C library")]

use std::collections::BTreeMap;

use cudarc::driver::{result, sys};

use crate::error::{Named, Result};

/// Launches since the last report, and events around them where times are wanted.
#[derive(Default)]
pub(crate) struct Profile {
    timed: bool,
    events: Vec<(&'static str, f64, sys::CUevent, sys::CUevent)>,
    launches: u64,
}

/// Launches and milliseconds of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KernelTime {
    /// How often it was launched.
    pub launches: u64,
    /// Time on the GPU, summed over the launches, milliseconds.
    pub ms: f64,
    /// Floating-point operations of matrix products; 0 for other kernels.
    pub flop: f64,
}

impl Profile {
    pub(crate) fn time(&mut self, on: bool) {
        self.timed = on;
    }

    pub(crate) fn is_timed(&self) -> bool {
        self.timed
    }

    /// Launches since the last call.
    pub(crate) fn take_launches(&mut self) -> u64 {
        std::mem::take(&mut self.launches)
    }

    /// Runs `launch`, which queues one piece of work of `flop` operations on `stream`.
    pub(crate) fn around(
        &mut self,
        stream: sys::CUstream,
        name: &'static str,
        flop: f64,
        launch: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.launches += 1;
        if !self.timed {
            return launch();
        }
        let mark = || -> Result<sys::CUevent> {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                .named("making an event")?;
            // SAFETY: both handles are alive.
            unsafe { result::event::record(event, stream) }.named("recording an event")?;
            Ok(event)
        };
        let start = mark()?;
        launch()?;
        let end = mark()?;
        self.events.push((name, flop, start, end));
        Ok(())
    }

    /// Times by kernel since the last call; the stream must have been waited for.
    pub(crate) fn take(&mut self) -> Result<BTreeMap<&'static str, KernelTime>> {
        let mut times: BTreeMap<&'static str, KernelTime> = BTreeMap::new();
        for (name, flop, start, end) in self.events.drain(..) {
            // SAFETY: both events were recorded and have passed.
            let ms = unsafe { result::event::elapsed(start, end) }.named("reading an event")?;
            let time = times.entry(name).or_default();
            time.launches += 1;
            time.ms += f64::from(ms);
            time.flop += flop;
            // SAFETY: nothing uses the events any more.
            unsafe {
                let _ = result::event::destroy(start);
                let _ = result::event::destroy(end);
            }
        }
        Ok(times)
    }
}
