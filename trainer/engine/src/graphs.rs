//! Passes that are launched again and again, as CUDA graphs: one call to the driver instead of one
//! per kernel.
//!
//! A pass over the same number of tokens at the same addresses is the same sequence of launches;
//! only index arrays and cached keys differ. Its second occurrence is recorded, later ones are
//! replayed. Where the driver cannot record (`DLM_CUDA_GRAPHS=0` says so too), passes are launched
//! kernel by kernel.
#![allow(unsafe_code, reason = "the CUDA driver is a C library")]

use std::collections::HashMap;
use std::rc::Rc;

use cudarc::driver::{result, sys};

use crate::device::Device;
use crate::error::{Named, Result};

/// Most recorded passes; beyond that all are forgotten.
const MOST: usize = 64;

/// What two passes must have in common to be the same launches: numbers of tokens, of attention
/// items and of tokens with adapters, and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PassKey {
    pub tokens: usize,
    pub items: usize,
    pub adapted: usize,
    pub slots: usize,
    /// Of activations, index arrays, rotary tables and the cache.
    pub addresses: [u64; 4],
}

/// Recorded passes of an engine.
pub(crate) struct Graphs {
    device: Rc<Device>,
    on: bool,
    /// None: seen once.
    passes: HashMap<PassKey, Option<Graph>>,
}

struct Graph {
    device: Rc<Device>,
    executable: sys::CUgraphExec,
}

impl Graphs {
    pub(crate) fn new(device: &Rc<Device>) -> Self {
        let on = std::env::var("DLM_CUDA_GRAPHS").map_or(true, |value| value != "0");
        Graphs { device: device.clone(), on, passes: HashMap::new() }
    }

    /// Runs the pass that `launch` launches, by replaying it where it was recorded.
    pub(crate) fn run(&mut self, key: PassKey, launch: impl Fn() -> Result<()>) -> Result<()> {
        if !self.on {
            return launch();
        }
        match self.passes.get(&key) {
            Some(Some(graph)) => return graph.replay(),
            // the first time kernels are loaded and cuBLAS chooses, which cannot be recorded
            None => {
                if self.passes.len() >= MOST {
                    self.passes.clear();
                }
                self.passes.insert(key, None);
                return launch();
            }
            Some(None) => {}
        }
        match self.record(&launch)? {
            Some(graph) => {
                graph.replay()?;
                self.passes.insert(key, Some(graph));
                Ok(())
            }
            None => {
                self.on = false;
                launch()
            }
        }
    }

    /// Records what `launch` queues; none where the driver cannot.
    fn record(&self, launch: impl Fn() -> Result<()>) -> Result<Option<Graph>> {
        let stream = self.device.stream();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the device; recording ends below on every path.
        if unsafe { result::stream::begin_capture(stream, mode) }.is_err() {
            return Ok(None);
        }
        let launched = launch();
        // SAFETY: the stream is being recorded.
        let recorded = unsafe { result::stream::end_capture(stream) };
        launched?;
        let Ok(graph) = recorded else { return Ok(None) };
        // SAFETY: the graph was just made, and is not needed once it is executable.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable
        };
        let device = self.device.clone();
        Ok(executable.ok().map(|executable| Graph { device, executable }))
    }
}

impl Graph {
    fn replay(&self) -> Result<()> {
        // SAFETY: the graph and the stream are alive; its addresses are those of the key.
        unsafe { result::graph::launch(self.executable, self.device.stream()) }
            .named("replaying a recorded pass")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            let _ = self.device.wait();
            // SAFETY: nothing of the graph runs any more.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}
