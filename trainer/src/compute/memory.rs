//! Memory that is free now, in bytes.

use super::card::Card;
use super::device::DeviceKind;

/// Free memory of the device that a run computes on; none where nothing reports it (wgpu, and CUDA
/// without `nvidia-smi`).
pub(crate) fn free_bytes(kind: DeviceKind) -> Option<usize> {
    match kind {
        DeviceKind::Cpu => Some(available_bytes()),
        DeviceKind::Cuda(index) => {
            Card::of_device(index).filter(|card| !card.is_split).map(|card| card.free_bytes)
        }
        DeviceKind::Wgpu => None,
    }
}

/// System memory available without swapping; 8 GiB where the system does not report it.
pub(crate) fn available_bytes() -> usize {
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
    use super::*;

    #[test]
    fn system_memory_is_not_taken_for_a_gpu() {
        assert!(free_bytes(DeviceKind::Cpu).is_some_and(|bytes| bytes > 0));
        assert_eq!(free_bytes(DeviceKind::Wgpu), None);
    }
}
