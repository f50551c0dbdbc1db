//! Choosing the device: `auto`, `cpu`, `cuda[:N]`, `wgpu`.
//!
//! Burn opens CUDA lazily and panics at the first operation if something is missing. Everything a
//! GPU run needs is therefore checked here first, and what is missing is named in one line.
#![allow(unsafe_code, reason = "dlopen checks that the CUDA libraries load")]

use burn::prelude::*;

use crate::error::{Error, Result};

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Cpu,
    /// An NVIDIA GPU by its CUDA index.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "built without CUDA"))]
    Cuda(usize),
    /// Whatever GPU wgpu drives, or its software driver.
    #[cfg_attr(not(feature = "wgpu"), allow(dead_code, reason = "built without wgpu"))]
    Wgpu,
}

/// A device that was checked and can be used.
#[derive(Clone, Debug)]
pub(crate) struct ComputeDevice {
    /// Burn's handle, without autodiff.
    pub device: Device,
    pub kind: DeviceKind,
    /// `cpu`, `cuda:N` or `wgpu`, for reports.
    pub name: String,
}

/// Resolve `auto | cpu | cuda | cuda:N | wgpu`.
pub(crate) fn choose(spec: &str) -> Result<ComputeDevice> {
    match spec {
        "cpu" => Ok(cpu()),
        "wgpu" => wgpu(),
        "auto" => Ok(cuda(0).unwrap_or_else(|_| cpu())),
        _ => {
            let index = match spec.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
                None => None,
            };
            let index = index.ok_or_else(|| {
                Error::Usage(format!(
                    "--device {spec:?} is not known; expected auto, cpu, cuda, cuda:N or wgpu"
                ))
            })?;
            cuda(index)
        }
    }
}

/// The CPU, which every build has.
pub(crate) fn cpu() -> ComputeDevice {
    ComputeDevice { device: Device::flex(), kind: DeviceKind::Cpu, name: "cpu".into() }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<ComputeDevice> {
    Err(Error::Device(
        "this dlm-train was built without wgpu; build it with `cargo build --release --features wgpu` or use --device cpu".into(),
    ))
}

/// The adapter that wgpu chooses, or the one that CUBECL_WGPU_DEFAULT_DEVICE names; without a GPU
/// the software driver, if one is installed.
#[cfg(feature = "wgpu")]
fn wgpu() -> Result<ComputeDevice> {
    use burn::tensor::{DeviceKind as Adapter, DeviceType};
    let count = std::panic::catch_unwind(|| Device::enumerate(DeviceType::Wgpu).into_vec().len())
        .unwrap_or(0);
    if count == 0 {
        return Err(Error::Device(
            "wgpu finds no adapter: install a Vulkan driver (Mesa's software driver will do) or use --device cpu".into(),
        ));
    }
    Ok(ComputeDevice {
        device: Device::wgpu(Adapter::DefaultDevice),
        kind: DeviceKind::Wgpu,
        name: "wgpu".into(),
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<ComputeDevice> {
    Err(Error::Device(
        "this dlm-train was built without CUDA; build it with `cargo build --release --features cuda` or use --device cpu".into(),
    ))
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<ComputeDevice> {
    use burn::tensor::DeviceType;
    if !library_loads(&["libcuda.so.1", "libcuda.so"]) {
        return Err(Error::Device("no NVIDIA driver: libcuda.so could not be loaded; install the driver or use --device cpu".into()));
    }
    if !library_loads(&["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]) {
        return Err(Error::Device(
            "the NVIDIA driver is there but libnvrtc.so (12 or 13) could not be loaded; install the CUDA toolkit's NVRTC and put it on LD_LIBRARY_PATH".into(),
        ));
    }
    if !headers_found() {
        return Err(Error::Device(
            "the CUDA headers (cuda_runtime.h) were not found; set CUDA_PATH to a CUDA 12 or 13 toolkit folder that has include/cuda_runtime.h".into(),
        ));
    }
    let count = std::panic::catch_unwind(|| Device::enumerate(DeviceType::Cuda).into_vec().len())
        .unwrap_or(0);
    if index >= count {
        return Err(Error::Device(format!(
            "cuda:{index} was asked for but the driver shows {count} CUDA devices; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )));
    }
    Ok(ComputeDevice {
        device: Device::cuda(index),
        kind: DeviceKind::Cuda(index),
        name: format!("cuda:{index}"),
    })
}

#[cfg(feature = "cuda")]
fn library_loads(names: &[&str]) -> bool {
    names.iter().any(|n| {
        let Ok(c) = std::ffi::CString::new(*n) else {
            return false;
        };
        // SAFETY: dlopen with a valid C string; the handle stays open for the life of the process.
        !unsafe { libc::dlopen(c.as_ptr(), libc::RTLD_LAZY) }.is_null()
    })
}

#[cfg(feature = "cuda")]
fn headers_found() -> bool {
    let mut roots: Vec<std::path::PathBuf> =
        std::env::var_os("CUDA_PATH").into_iter().map(Into::into).collect();
    roots.extend(["/usr/local/cuda", "/opt/cuda", "/usr"].map(Into::into));
    roots.iter().any(|r| r.join("include/cuda_runtime.h").is_file())
}
