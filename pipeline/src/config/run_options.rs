//! Options of a run that do not decide the output's bytes, and their defaults.

/// Output folder if none is given.
pub(crate) const DEFAULT_OUT: &str = "datasets/packed";

/// Largest number of worker threads.
const MAX_WORKERS: usize = 256;

/// Which tokenizer engine is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum EngineChoice {
    /// The fast engine if it agrees with the stable one on a sample of the input, else the stable
    /// one.
    #[default]
    Auto,
    /// The fast engine, without the comparison.
    Fast,
    /// The stable engine, which is slower.
    Stable,
}

/// Which rows the chat template renders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum RenderChoice {
    /// Only rows whose content the template may change. Which those are is found by rendering
    /// probes; one row in 61 is rendered all the same, to check.
    #[default]
    Auto,
    /// Every row, which is slower.
    Each,
}

/// The number of worker threads: as given, else the number of available cores.
pub(crate) fn worker_count(workers: Option<usize>) -> usize {
    workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
        .clamp(1, MAX_WORKERS)
}
