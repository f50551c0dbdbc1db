//! The dtype of activations and matrix products. Master weights and optimizer state are always
//! fp32.

use burn::tensor::DType;

use crate::config;

/// The dtype of matrix products and activations; master weights are always fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeDtype {
    /// 32-bit floats; on tensor cores TF32 products.
    Fp32,
    /// 16-bit floats with 8 exponent bits.
    Bf16,
}

impl ComputeDtype {
    /// Burn's name for it.
    pub fn burn(self) -> DType {
        match self {
            ComputeDtype::Fp32 => DType::F32,
            ComputeDtype::Bf16 => DType::BF16,
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        self.burn().size()
    }
}

/// The format that decoding on the CPU holds weights in. Activations and sums are fp32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightFormat {
    /// For each matrix the smallest format that holds its weights exactly: bf16 for those that were
    /// bf16, int8 for ternary ones, else fp32.
    #[default]
    Auto,
    /// 32-bit floats.
    Fp32,
    /// Rounded to bf16.
    Bf16,
    /// Rounded to 8 bits with a factor for each 64 weights of an output: approximate.
    Int8,
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WeightFormat::Auto => "auto",
            WeightFormat::Fp32 => "fp32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Int8 => "int8",
        })
    }
}

impl From<config::Dtype> for ComputeDtype {
    fn from(dtype: config::Dtype) -> Self {
        match dtype {
            config::Dtype::Fp32 => ComputeDtype::Fp32,
            config::Dtype::Bf16 => ComputeDtype::Bf16,
        }
    }
}

impl std::fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ComputeDtype::Fp32 => "fp32",
            ComputeDtype::Bf16 => "bf16",
        })
    }
}
