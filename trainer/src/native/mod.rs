//! Training on an NVIDIA GPU without Burn in between: `dlm-engine` behind the types of this crate.
//!
//! In: a decoder, host weights, batches of streams. Out: losses, norms, gradients, weights and
//! moments. Burn computes whatever the engine does not (Muon, other GPUs, some shapes); what that
//! is, and why, is said by name. Without the feature `native` there is no engine, and [`Native`]
//! has no values.

#[cfg(not(feature = "native"))]
mod absent;
#[cfg(feature = "native")]
mod convert;
#[cfg(feature = "native")]
mod followers;
#[cfg(feature = "native")]
mod given;
#[cfg(feature = "native")]
mod present;

#[cfg(not(feature = "native"))]
pub(crate) use absent::{Native, free_memory, memory_need};
#[cfg(feature = "native")]
pub(crate) use present::{Native, free_memory, memory_need};

use serde::Serialize;

use crate::compute::{ComputeDtype, ComputePlan, DeviceKind, EngineChoice, device};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, ParamKind, Params};

/// What a native engine is made for.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "native"), allow(dead_code, reason = "there is no engine"))]
pub(crate) struct NativeOptions {
    /// Keep only the input of each layer and run the layer again in the backward pass.
    pub activation_checkpointing: bool,
    /// Positions whose logits exist at one time; none: as many as two GiB hold.
    pub loss_chunk: Option<usize>,
    /// Gradients and optimizer state too.
    pub training: bool,
    /// Dtype of activations and matrix products.
    pub dtype: ComputeDtype,
    /// GPUs that train together, each of which holds a part of the optimizer's state.
    pub gpus: usize,
    /// Share of the divergence from the source in the loss, 0 to 1, where a batch has teachers.
    pub distill: f64,
}

impl NativeOptions {
    /// For decoding.
    pub(crate) fn decoding(dtype: ComputeDtype) -> Self {
        NativeOptions {
            activation_checkpointing: false,
            loss_chunk: None,
            training: false,
            dtype,
            gpus: 1,
            distill: 0.0,
        }
    }
}

/// Time of one kernel.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct KernelMs {
    pub name: String,
    pub launches: u64,
    /// Summed over the launches, milliseconds.
    pub ms: f64,
    /// Of matrix products.
    pub tflops_per_s: Option<f64>,
}

/// Whether a run computes on the engine: on CUDA, for the models it is written for.
///
/// # Errors
/// When the engine was asked for and cannot be used, or Burn would have to compute on CUDA and this
/// build or machine has not what it needs.
pub(crate) fn is_chosen(
    choice: EngineChoice,
    compute: &ComputePlan,
    model: &ModelConfig,
    other: Option<&str>,
) -> Result<bool> {
    let refusal = match compute.device.kind {
        DeviceKind::Cuda(_) => other.map(String::from).or_else(|| unsupported(model)),
        DeviceKind::Cpu | DeviceKind::Wgpu => {
            Some(format!("it needs an NVIDIA GPU, and this run is on {}", compute.device.name))
        }
    };
    match (choice, refusal) {
        (EngineChoice::Auto | EngineChoice::Native, None) => Ok(true),
        (EngineChoice::Native, Some(reason)) => Err(Error::Usage(format!(
            "the native engine cannot be used here: {reason}; take auto or burn"
        ))),
        (EngineChoice::Burn, _) => device::check_burn(&compute.device).map(|()| false),
        (EngineChoice::Auto, Some(reason)) => match device::check_burn(&compute.device) {
            Ok(()) => Ok(false),
            Err(error) => Err(Error::Device(format!(
                "the native engine cannot be used here: {reason}. {error}"
            ))),
        },
    }
}

/// What of a model the engine does not compute.
pub(crate) fn unsupported(model: &ModelConfig) -> Option<String> {
    let params = Params::new(model);
    let mixed = params.specs.iter().any(|s| s.kind == ParamKind::Matrix && !s.may_quantize);
    if mixed && (model.quantization.is_some() || !model.not_quantized.is_empty()) {
        return Some("it computes BitLinear in all matrices of the layers or in none".into());
    }
    if model.o_bias || model.mlp_bias {
        return Some("it does not compute biases on o_proj or the MLP".into());
    }
    if ![16, 32, 64, 96, 128].contains(&model.head_dim) {
        return Some(format!(
            "it computes heads of 16, 32, 64, 96 and 128, and head_dim is {}",
            model.head_dim
        ));
    }
    let widths =
        [model.hidden_size, model.intermediate_size, model.num_attention_heads * model.head_dim];
    let normed = if model.sub_norms { model.intermediate_size } else { 0 };
    let too_wide = model.hidden_size.max(normed) > 8192;
    (widths.iter().any(|width| width % 16 != 0) || too_wide).then(|| {
        format!(
            "it computes widths that are multiples of 16, and norms at most 8192 wide, not {widths:?}"
        )
    })
}
