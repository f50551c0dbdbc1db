//! The number of rows per forward pass, where the configuration does not set it.
//!
//! In: shapes, rows per step, free memory. Out: the largest divisor of `train.batch_rows` whose
//! activations fit into memory; the effective batch never changes. The choice is stored in the
//! checkpoint, so that a resume on a machine with other memory sums gradients in the same order.

use crate::compute::{ComputeDtype, ComputePlan, DeviceKind, memory};
use crate::config::{ActivationCheckpointing, Config};
use crate::diffusion::{Layout, Objective};
use crate::model::Decoder;
use crate::native::{self, NativeOptions};
use crate::report::console::message;
use crate::train::identity::distilled_share;

/// On a CPU more rows per pass are not faster.
const CPU_CAP: usize = 8;
/// On a GPU more rows per pass are not faster.
const GPU_CAP: usize = 64;

/// Bytes of activations that one row of `seq_len` tokens keeps until its backward pass is done.
///
/// Counts what is kept per processed token and layer: norm inputs and outputs, q, k, v, attention
/// output, gate, up and their product, residuals. With activation checkpointing only the layers'
/// inputs are kept, plus all of this for one layer.
fn row_bytes(
    decoder: &Decoder,
    objective: Objective,
    seq_len: usize,
    element_bytes: usize,
    activation_checkpointing: bool,
) -> usize {
    let c = &decoder.cfg;
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let per_layer = 6 * c.hidden_size + 3 * q + 4 * kv + 4 * c.intermediate_size;
    let layers = c.num_hidden_layers;
    let per_token = if activation_checkpointing {
        layers * c.hidden_size + 2 * per_layer
    } else {
        (layers + 1) * per_layer
    };
    per_token * processed_at_most(objective, seq_len) * element_bytes
}

/// Most tokens that go through the decoder for a row.
fn processed_at_most(objective: Objective, seq_len: usize) -> usize {
    match objective {
        Objective::Sft => seq_len,
        Objective::Lossless { layout: Layout::Saving, offsets, .. } => (1 + offsets) * seq_len,
        Objective::Lossless { layout: Layout::Reference, offsets, .. } => 2 * offsets * seq_len,
        // rows differ; the saving layout keeps three copies at most
        Objective::BlockDiffusion(Layout::Saving) => 3 * seq_len,
        Objective::BlockDiffusion(Layout::Reference) => 4 * seq_len,
    }
}

/// Most predictions of a row that count.
fn targets_at_most(objective: Objective, seq_len: usize) -> usize {
    match objective {
        Objective::Lossless { offsets, .. } => offsets * seq_len,
        Objective::Sft | Objective::BlockDiffusion(_) => seq_len,
    }
}

/// The largest divisor of `batch_rows`, at most [`GPU_CAP`], for which `need` (fixed bytes, bytes
/// of activations) leaves a thirtieth of the free memory alone; 1 where none does.
fn native_rows(free: usize, batch_rows: usize, need: impl Fn(usize) -> (usize, usize)) -> usize {
    let fits = |rows: &usize| native_fits(free, need(*rows));
    let divisors = (1..=batch_rows.min(GPU_CAP)).rev().filter(|rows| batch_rows % rows == 0);
    divisors.into_iter().find(fits).unwrap_or(1)
}

/// Whether fixed bytes and bytes of activations leave a thirtieth of the free memory alone. The
/// engine takes an eighth more for activations, so that batches may differ in length.
pub(crate) fn native_fits(free: usize, (fixed, activations): (usize, usize)) -> bool {
    fixed.saturating_add(activations / 8 * 9) <= free / 30 * 29
}

/// The largest divisor of `batch_rows`, at most `cap`, whose rows fit into `available` bytes; 1
/// where none does.
fn choose(batch_rows: usize, row_bytes: usize, available: usize, cap: usize) -> usize {
    let fits = (available / row_bytes.max(1)).clamp(1, cap.max(1));
    (1..=batch_rows.min(fits)).rev().find(|m| batch_rows % m == 0).unwrap_or(1)
}

/// What decides how many rows fit: the run's settings and the device that it computes on.
#[derive(Clone, Copy)]
pub(crate) struct Passes<'a> {
    pub(crate) cfg: &'a Config,
    pub(crate) decoder: &'a Decoder,
    pub(crate) objective: Objective,
    pub(crate) seq_len: usize,
    pub(crate) dtype: ComputeDtype,
    /// Whether the native engine computes.
    pub(crate) native: bool,
    /// GPUs that share the optimizer's state.
    pub(crate) gpus: usize,
}

impl Passes<'_> {
    fn checkpointing(&self) -> bool {
        self.cfg.train.activation_checkpointing == ActivationCheckpointing::Layer
    }

    /// Bytes that the native engine takes with micro-batches of `rows` rows: fixed, activations.
    pub(crate) fn native_need(&self, rows: usize) -> (usize, usize) {
        let options = NativeOptions {
            activation_checkpointing: self.checkpointing(),
            loss_chunk: self.cfg.train.loss_chunk,
            training: true,
            dtype: self.dtype,
            gpus: self.gpus,
            distill: distilled_share(self.cfg),
        };
        let tokens = processed_at_most(self.objective, self.seq_len);
        let targets = targets_at_most(self.objective, self.seq_len);
        native::memory_need(self.decoder, options, rows * tokens, rows * targets)
    }

    /// The largest divisor of `train.batch_rows` that fits into `free` bytes of the device, where
    /// the configuration does not say.
    pub(crate) fn rows_in(&self, kind: DeviceKind, free: Option<usize>) -> usize {
        let batch = self.cfg.train.batch_rows.max(1);
        match self.native {
            true => native_rows(free.unwrap_or(assumed_bytes(kind)), batch, |rows| {
                self.native_need(rows)
            }),
            false => {
                let row = row_bytes(
                    self.decoder,
                    self.objective,
                    self.seq_len,
                    self.dtype.size(),
                    self.checkpointing(),
                );
                rows_for(kind, free, batch, row, self.decoder.params.trained_numel())
            }
        }
    }
}

/// Rows per forward pass: as configured, else as many as fit into the memory that is free now. On
/// a GPU a step that does not fit is repeated with smaller micro-batches (`out_of_memory.rs`).
pub(super) fn rows(
    cfg: &Config,
    compute: &ComputePlan,
    decoder: &Decoder,
    objective: Objective,
    seq_len: usize,
    workers: usize,
) -> usize {
    if let Some(rows) = cfg.train.micro_batch_rows {
        return for_workers(rows, cfg.train.batch_rows, workers);
    }
    let kind = compute.device.kind;
    let free = match compute.native {
        true => native::free_memory(compute.cuda_index()),
        false => memory::free_bytes(kind),
    };
    let (dtype, native) = (compute.dtype, compute.native);
    // the activations of workers on the CPU are in the same memory at the same time
    let here = if kind == DeviceKind::Cpu { workers } else { 1 };
    let of_worker = free.map(|free| free / here);
    let passes = Passes { cfg, decoder, objective, seq_len, dtype, native, gpus: workers };
    let rows = passes.rows_in(kind, of_worker);
    let rows = for_workers(rows, cfg.train.batch_rows, workers);
    if free.is_none() {
        message(format_args!(
            "the free memory of {} is not known: micro-batches of {rows} rows, sized for {} GiB; set train.micro_batch_rows for others",
            compute.device.name,
            assumed_bytes(kind) >> 30
        ));
    }
    rows
}

/// The largest divisor of `batch_rows` that is at most `rows` and makes a micro-batch for each
/// worker; 1 where none does.
pub(crate) fn for_workers(rows: usize, batch_rows: usize, workers: usize) -> usize {
    let most = rows.min(batch_rows / workers.max(1)).max(1);
    (1..=most).rev().find(|rows| batch_rows % rows == 0).unwrap_or(1)
}

/// On a CPU half of the free memory is used, on a GPU most of it.
fn rows_for(
    kind: DeviceKind,
    free: Option<usize>,
    batch_rows: usize,
    row_bytes: usize,
    parameters: usize,
) -> usize {
    let free = free.unwrap_or(assumed_bytes(kind));
    match kind {
        DeviceKind::Cpu => choose(batch_rows, row_bytes, free / 2, CPU_CAP),
        DeviceKind::Cuda(_) | DeviceKind::Wgpu => {
            choose(batch_rows, row_bytes, for_activations(free, parameters), GPU_CAP)
        }
    }
}

/// Memory assumed where nothing reports it: that of a small training card for CUDA, of a small
/// consumer or integrated GPU for wgpu.
fn assumed_bytes(kind: DeviceKind) -> usize {
    match kind {
        DeviceKind::Cpu => 8 << 30,
        DeviceKind::Cuda(_) => 16 << 30,
        DeviceKind::Wgpu => 4 << 30,
    }
}

/// What a GPU has left for activations: gradients, two moments and a bf16 copy (14 bytes per
/// parameter) are still to come, and a tenth is left alone.
fn for_activations(free: usize, parameters: usize) -> usize {
    (free / 10 * 9).saturating_sub(14 * parameters)
}

#[cfg(test)]
mod tests {
    use super::{choose, for_activations, for_workers, native_rows, rows_for};
    use crate::compute::DeviceKind;

    #[test]
    fn a_gpu_of_unknown_memory_is_taken_to_be_small() {
        let (row, parameters) = (1 << 30, 10_000_000);
        assert_eq!(rows_for(DeviceKind::Wgpu, None, 32, row, parameters), 2);
        assert_eq!(rows_for(DeviceKind::Wgpu, Some(80 << 30), 32, row, parameters), 32);
        assert_eq!(rows_for(DeviceKind::Cuda(0), None, 32, row, parameters), 8);
        assert_eq!(rows_for(DeviceKind::Cpu, Some(80 << 30), 32, row, parameters), 8);
    }

    #[test]
    fn the_native_engine_takes_what_it_needs() {
        let need = |rows: usize| (300, 80 * rows);
        assert_eq!(native_rows(3000, 24, need), 24);
        assert_eq!(native_rows(1800, 24, need), 12);
        assert_eq!(native_rows(1000, 24, need), 6);
        assert_eq!(native_rows(100, 24, need), 1);
        assert_eq!(native_rows(1 << 40, 250, need), 50);
    }

    #[test]
    fn every_worker_has_a_micro_batch() {
        assert_eq!(for_workers(8, 8, 1), 8);
        assert_eq!(for_workers(8, 8, 2), 4);
        assert_eq!(for_workers(2, 8, 2), 2);
        assert_eq!(for_workers(8, 12, 5), 2);
        assert_eq!(for_workers(8, 7, 2), 1);
        for (batch, workers) in (1..40).flat_map(|batch| (1..=batch).map(move |n| (batch, n))) {
            let rows = for_workers(8, batch, workers);
            assert!(batch % rows == 0 && batch / rows >= workers, "{batch} {workers} {rows}");
        }
    }

    #[test]
    fn a_gpu_keeps_room_for_weights() {
        assert_eq!(for_activations(100, 5), 20);
        assert_eq!(for_activations(100, 50), 0);
        // no room at all is one row at a time, not none
        assert_eq!(choose(8, 10, for_activations(100, 50), 64), 1);
    }

    #[test]
    fn the_effective_batch_is_kept() {
        assert_eq!(choose(32, 100, 100_000, 8), 8);
        assert_eq!(choose(12, 100, 500, 8), 4);
        assert_eq!(choose(7, 100, 500, 8), 1);
        assert_eq!(choose(6, 100, 10, 8), 1);
        assert_eq!(choose(6, 0, 10, 4), 3);
        for batch in 1..50 {
            for available in [0, 50, 350, 10_000] {
                assert_eq!(batch % choose(batch, 60, available, 16), 0);
            }
        }
    }
}
