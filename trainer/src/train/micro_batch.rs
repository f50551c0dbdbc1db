//! How many rows go through the decoder at a time, when the configuration leaves it open.
//!
//! In: shapes, the step's rows, free memory. Out: the largest divisor of `train.batch_rows` whose
//! activations fit; the effective batch never changes. The choice is kept in the checkpoint, so
//! that a resume on a machine with other memory adds up in the same order.

use burn::tensor::DType;

use crate::compute::device::ComputeDevice;
use crate::config::{ActivationCheckpointing, Config};
use crate::diffusion::{Layout, Objective};
use crate::model::Decoder;

/// More rows than this at a time bring no speed on a CPU.
const CPU_CAP: usize = 8;
/// Nor on a GPU more than this.
const GPU_CAP: usize = 64;

/// Bytes of activations that one row of `seq_len` keeps until its backward pass is done, from the
/// decoder's shapes.
///
/// Counts what the tape holds per processed token and layer: norm inputs and outputs, q, k, v,
/// attention output, gate, up and their product, residuals. With recomputation only layer inputs
/// stay, and one layer's tape.
pub fn row_bytes(
    decoder: &Decoder,
    objective: Objective,
    seq_len: usize,
    element: usize,
    recompute: bool,
) -> usize {
    let c = &decoder.cfg;
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let per_layer = 6 * c.hidden_size + 3 * q + 4 * kv + 4 * c.intermediate_size;
    let layers = c.num_hidden_layers;
    let per_token =
        if recompute { layers * c.hidden_size + 2 * per_layer } else { (layers + 1) * per_layer };
    let processed = match objective {
        Objective::Sft => seq_len,
        // rows differ; three copies is the most the saving layout ever keeps
        Objective::BlockDiffusion(Layout::Saving) => 3 * seq_len,
        Objective::BlockDiffusion(Layout::Reference) => 4 * seq_len,
    };
    per_token * processed * element
}

/// The largest divisor of `batch_rows`, at most `cap`, whose rows fit into `available` bytes; 1
/// where none does.
pub fn choose(batch_rows: usize, row_bytes: usize, available: usize, cap: usize) -> usize {
    let fits = (available / row_bytes.max(1)).clamp(1, cap.max(1));
    (1..=batch_rows.min(fits)).rev().find(|m| batch_rows % m == 0).unwrap_or(1)
}

/// Rows a forward pass: what was asked for, else what fits into half of the memory that is free now
/// on a CPU, into most of it on a GPU, where a step that does not fit is taken again in halves
/// (`memory.rs`).
pub fn rows(
    cfg: &Config,
    chosen: &ComputeDevice,
    decoder: &Decoder,
    objective: Objective,
    seq_len: usize,
    dtype: DType,
) -> usize {
    let recompute = cfg.train.activation_checkpointing == ActivationCheckpointing::Layer;
    let row = row_bytes(decoder, objective, seq_len, dtype.size(), recompute);
    let batch = cfg.train.batch_rows.max(1);
    cfg.train.micro_batch_rows.unwrap_or_else(|| match chosen.name.starts_with("cuda") {
        true => {
            choose(batch, row, for_activations(gpu_free_bytes(), decoder.params.numel()), GPU_CAP)
        }
        false => choose(batch, row, available_bytes() / 2, CPU_CAP),
    })
}

/// What a GPU has left for activations: gradients, two moments and a bf16 copy (14 bytes a
/// parameter) are still to come, and a tenth is left alone.
fn for_activations(free: usize, parameters: usize) -> usize {
    (free / 10 * 9).saturating_sub(14 * parameters)
}

/// Free memory of the GPU as the driver's own tool tells it, the smallest where there are several;
/// 16 GiB where it does not.
fn gpu_free_bytes() -> usize {
    let asked = std::process::Command::new("nvidia-smi")
        .args(["--query-gpu=memory.free", "--format=csv,noheader,nounits"])
        .output();
    let told = asked
        .ok()
        .filter(|out| out.status.success())
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let mib = told
        .and_then(|text| text.lines().filter_map(|line| line.trim().parse::<usize>().ok()).min());
    mib.map_or(16 << 30, |mib| mib << 20)
}

/// Memory the system would give without swapping; 8 GiB where it does not say.
pub fn available_bytes() -> usize {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|s| {
            s.lines().find_map(|l| {
                l.strip_prefix("MemAvailable:")
                    .and_then(|v| v.split_whitespace().next()?.parse::<usize>().ok())
            })
        })
        .map_or(8 << 30, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::{choose, for_activations};

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
