//! The compute plan of a run: device, dtype, attention, stream shape and the peak used for MFU,
//! resolved once; the rest of the program reads it.

use super::card::Card;
use super::device::{ComputeDevice, DeviceKind};
use super::dtype::ComputeDtype;
use crate::error::{Error, Result};

/// The attention implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attention {
    /// Materialised scores under a dense mask, on any device and dtype; the reference
    /// implementation that tests compare the other two with.
    Dense,
    /// Materialised scores, mask and softmax over key ranges in one pass, on any device and dtype.
    Ranges,
    /// One tile of scores at a time, without a mask (CPU and fp32 only).
    Tiles,
}

/// The attention asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AttentionChoice {
    /// The fastest that the device and dtype support.
    Auto,
    /// Materialised scores under a dense mask.
    Dense,
    /// Materialised scores, softmax over key ranges.
    Ranges,
    /// By tiles, without a mask (CPU, fp32).
    Tiles,
}

/// What computes the passes of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// The native engine where it can be used, else Burn.
    #[default]
    Auto,
    /// The native engine: own kernels and cuBLAS, on CUDA.
    Native,
    /// Burn, on every device.
    Burn,
}

/// How the token streams of a micro-batch are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamShape {
    /// End to end in one row without padding; for attention by tiles.
    Flat,
    /// One stream per row, lengths rounded up to a multiple; for dense masks and static shapes.
    Rectangular {
        /// Stream lengths are rounded up to a multiple of this.
        multiple: usize,
    },
}

/// Stream lengths on devices without tiles: few different shapes, so that kernels are tuned and
/// compiled rarely.
const MULTIPLE: usize = 32;

/// How a run computes.
#[derive(Clone, Debug)]
pub(crate) struct ComputePlan {
    pub device: ComputeDevice,
    /// Dtype of activations and matrix products.
    pub dtype: ComputeDtype,
    pub attention: Attention,
    pub stream_shape: StreamShape,
    /// Dense peak of the named card at `dtype`, FLOP/s, used for MFU; none for unknown cards.
    pub peak_flops: Option<f64>,
    /// The native engine computes; Burn's tensors are in host memory then.
    pub native: bool,
}

impl ComputePlan {
    /// The plan of a device. Without a dtype: bf16 on CUDA, fp32 elsewhere.
    pub(crate) fn new(device: ComputeDevice, dtype: Option<ComputeDtype>) -> Self {
        let dtype = dtype.unwrap_or(match device.kind {
            DeviceKind::Cuda(_) => ComputeDtype::Bf16,
            DeviceKind::Cpu | DeviceKind::Wgpu => ComputeDtype::Fp32,
        });
        let attention = match (device.kind, dtype) {
            (DeviceKind::Cpu, ComputeDtype::Fp32) => Attention::Tiles,
            _ => Attention::Ranges,
        };
        let peak_flops = match device.kind {
            DeviceKind::Cuda(index) => {
                Card::of_device(index).and_then(|card| card.peak_flops(dtype))
            }
            DeviceKind::Cpu | DeviceKind::Wgpu => None,
        };
        let stream_shape = shape_for(attention, MULTIPLE);
        ComputePlan { device, dtype, attention, stream_shape, peak_flops, native: false }
    }

    /// The plan with another attention; refused where the device or dtype does not support it.
    pub(crate) fn with_attention(mut self, choice: AttentionChoice) -> Result<Self> {
        let attention = match choice {
            AttentionChoice::Auto => return Ok(self),
            AttentionChoice::Dense => Attention::Dense,
            AttentionChoice::Ranges => Attention::Ranges,
            AttentionChoice::Tiles => Attention::Tiles,
        };
        let supported = self.device.kind == DeviceKind::Cpu && self.dtype == ComputeDtype::Fp32;
        if attention == Attention::Tiles && !supported {
            return Err(Error::Usage(format!(
                "--attention tiles runs on the CPU in fp32 only, not on {} in {}; use ranges, dense or auto",
                self.device.name, self.dtype
            )));
        }
        self.attention = attention;
        self.stream_shape = shape_for(attention, MULTIPLE);
        Ok(self)
    }

    /// The plan with the native engine, which reads streams end to end.
    pub(crate) fn on_native_engine(mut self) -> Self {
        self.native = true;
        self.device.device = super::device::cpu().device;
        self.attention = Attention::Tiles;
        self.stream_shape = StreamShape::Flat;
        self
    }

    /// CUDA index of the device.
    pub(crate) fn cuda_index(&self) -> usize {
        match self.device.kind {
            DeviceKind::Cuda(index) => index,
            DeviceKind::Cpu | DeviceKind::Wgpu => 0,
        }
    }

    /// What attention is computed by, for reports.
    pub(crate) fn attention_name(&self) -> String {
        if self.native { "native".into() } else { format!("{:?}", self.attention).to_lowercase() }
    }

    /// The plan with other rounding of rectangular streams; flat streams have none.
    pub(crate) fn with_multiple(mut self, multiple: usize) -> Self {
        self.stream_shape = shape_for(self.attention, multiple);
        self
    }
}

fn shape_for(attention: Attention, multiple: usize) -> StreamShape {
    match attention {
        Attention::Tiles => StreamShape::Flat,
        Attention::Dense | Attention::Ranges => StreamShape::Rectangular { multiple },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::device;

    fn on(kind: DeviceKind) -> ComputeDevice {
        ComputeDevice { kind, ..device::cpu() }
    }

    #[test]
    fn cpu_in_fp32_computes_attention_by_tiles() {
        let plan = ComputePlan::new(device::cpu(), None);
        assert_eq!(
            (plan.dtype, plan.attention, plan.stream_shape, plan.peak_flops),
            (ComputeDtype::Fp32, Attention::Tiles, StreamShape::Flat, None)
        );
        let plan = ComputePlan::new(device::cpu(), Some(ComputeDtype::Bf16));
        assert_eq!(plan.attention, Attention::Ranges);
        assert_eq!(plan.stream_shape, StreamShape::Rectangular { multiple: 32 });
    }

    #[test]
    fn gpus_take_ranges_and_only_cuda_takes_bf16() {
        let cuda = ComputePlan::new(on(DeviceKind::Cuda(0)), None);
        assert_eq!((cuda.dtype, cuda.attention), (ComputeDtype::Bf16, Attention::Ranges));
        let wgpu = ComputePlan::new(on(DeviceKind::Wgpu), None);
        assert_eq!((wgpu.dtype, wgpu.attention), (ComputeDtype::Fp32, Attention::Ranges));
        assert_eq!(wgpu.peak_flops, None);
    }

    #[test]
    fn tiles_are_refused_where_they_cannot_run() {
        let tiles = |kind, dtype| {
            ComputePlan::new(on(kind), Some(dtype)).with_attention(AttentionChoice::Tiles)
        };
        assert!(tiles(DeviceKind::Cpu, ComputeDtype::Fp32).is_ok());
        assert!(tiles(DeviceKind::Wgpu, ComputeDtype::Fp32).is_err());
        let error = tiles(DeviceKind::Cpu, ComputeDtype::Bf16).unwrap_err();
        assert!(error.to_string().contains("cpu in bf16"), "{error}");
        let dense = ComputePlan::new(device::cpu(), None).with_attention(AttentionChoice::Dense);
        let dense = dense.unwrap().with_multiple(8);
        assert_eq!(dense.stream_shape, StreamShape::Rectangular { multiple: 8 });
    }
}
