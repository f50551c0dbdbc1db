//! How many rows go through the decoder at a time, when the configuration leaves it open.
//!
//! In: shapes, the step's rows, free memory. Out: the largest divisor of `train.batch_rows` whose activations fit; the
//! effective batch never changes. The choice is kept in the checkpoint, so that a resume on a machine with other memory
//! adds up in the same order.

use crate::diffusion::{Layout, Objective};
use crate::model::Decoder;

/// More rows than this at a time bring no speed on a CPU.
const CPU_CAP: usize = 8;

/// Bytes of activations that one row of `seq_len` keeps until its backward pass is done, from the decoder's shapes.
///
/// Counts what the tape holds per processed token and layer: norm inputs and outputs, q, k, v, attention output, gate, up and
/// their product, residuals. With recomputation only layer inputs stay, and one layer's tape.
pub fn row_bytes(decoder: &Decoder, objective: Objective, seq_len: usize, element: usize, recompute: bool) -> usize {
    let c = &decoder.cfg;
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let per_layer = 6 * c.hidden_size + 3 * q + 4 * kv + 4 * c.intermediate_size;
    let layers = c.num_hidden_layers;
    let per_token = if recompute { layers * c.hidden_size + 2 * per_layer } else { (layers + 1) * per_layer };
    let processed = match objective {
        Objective::Sft => seq_len,
        // rows differ; three copies is the most the saving layout ever keeps
        Objective::BlockDiffusion(Layout::Saving) => 3 * seq_len,
        Objective::BlockDiffusion(Layout::Reference) => 4 * seq_len,
    };
    per_token * processed * element
}

/// The largest divisor of `batch_rows`, at most `cap`, whose rows fit into `available` bytes; 1 where none does.
pub fn choose(batch_rows: usize, row_bytes: usize, available: usize, cap: usize) -> usize {
    let fits = (available / row_bytes.max(1)).clamp(1, cap.max(1));
    (1..=batch_rows.min(fits)).rev().find(|m| batch_rows % m == 0).unwrap_or(1)
}

/// Rows a forward pass on the CPU, within half of the memory that is free now.
pub fn for_cpu(batch_rows: usize, row_bytes: usize) -> usize {
    choose(batch_rows, row_bytes, available_bytes() / 2, CPU_CAP)
}

/// Memory the system would give without swapping; 8 GiB where it does not say.
fn available_bytes() -> usize {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|s| {
            s.lines().find_map(|l| l.strip_prefix("MemAvailable:").and_then(|v| v.split_whitespace().next()?.parse::<usize>().ok()))
        })
        .map_or(8 << 30, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::choose;

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
