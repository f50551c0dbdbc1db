//! Choosing the device: `auto`, `cpu`, `cuda[:N]`, `wgpu`.
//!
//! A CUDA device is computed on by the native engine, or by Burn where the build has its CUDA
//! backend. Burn opens CUDA lazily and panics at the first operation if something is missing;
//! [`check_burn`] therefore names what is missing before Burn is used.
#![cfg_attr(
    feature = "cuda",
    allow(unsafe_code, reason = "dlopen checks that the CUDA libraries load")
)]

use burn::prelude::*;

use crate::error::{Error, Result};

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Cpu,
    /// An NVIDIA GPU by its CUDA index.
    #[cfg_attr(not(feature = "native"), allow(dead_code, reason = "built without CUDA"))]
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
    /// `cpu`, `cuda:N` or `wgpu`, for reports; with the reason where a GPU could not be used.
    pub name: String,
}

/// The device that `auto`, `cpu`, `cuda`, `cuda:N` or `wgpu` stands for; `auto` is the first CUDA
/// device, or the CPU if there is none that can be used.
pub(crate) fn choose(spec: &str) -> Result<ComputeDevice> {
    match spec {
        "cpu" => Ok(cpu()),
        "wgpu" => wgpu(),
        "auto" => Ok(automatic()),
        _ if spec.starts_with("cuda") && spec.contains(',') => Err(Error::Usage(format!(
            "--device {spec:?}: only training takes several GPUs; give one (--device cuda:0)"
        ))),
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

/// The devices of a training run.
#[derive(Clone, Debug)]
pub(crate) struct Team {
    /// The first of them.
    pub device: ComputeDevice,
    /// How many share the rows of a step.
    pub workers: usize,
    /// Their CUDA indices; empty on other devices.
    pub gpus: Vec<usize>,
}

/// The devices that `--device` and `--devices` stand for: `cuda:0,2` names GPUs, a number of
/// devices is that many GPUs from the named one on, or workers on the CPU.
pub(crate) fn choose_team(spec: &str, devices: Option<usize>) -> Result<Team> {
    let wrong = |why: String| Err(Error::Usage(why));
    if devices == Some(0) {
        return wrong("--devices 0: expected 1 or more".into());
    }
    let several = |indices: Vec<usize>| -> Result<Team> {
        let named: std::collections::BTreeSet<usize> = indices.iter().copied().collect();
        if named.len() != indices.len() {
            return wrong(format!("--device {spec:?} names a GPU twice"));
        }
        let all = indices.iter().map(|index| choose(&format!("cuda:{index}")));
        let all = all.collect::<Result<Vec<_>>>()?;
        let name = all.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(" + ");
        let device = ComputeDevice { name, ..all[0].clone() };
        Ok(Team { device, workers: indices.len(), gpus: indices })
    };
    if let Some(list) = spec.strip_prefix("cuda:").filter(|list| list.contains(',')) {
        let indices = list.split(',').map(|index| index.trim().parse::<usize>());
        let Ok(indices) = indices.collect::<std::result::Result<Vec<_>, _>>() else {
            return wrong(format!("--device {spec:?}: expected CUDA indices, such as cuda:0,1"));
        };
        return match devices.filter(|n| *n != indices.len()) {
            Some(n) => {
                wrong(format!("--device {spec:?} names {} GPUs, --devices {n}", indices.len()))
            }
            None => several(indices),
        };
    }
    let device = choose(spec)?;
    match (device.kind, devices.unwrap_or(1)) {
        (DeviceKind::Cuda(first), n @ 2..) => several((first..first + n).collect()),
        (DeviceKind::Cuda(first), _) => Ok(Team { device, workers: 1, gpus: vec![first] }),
        (DeviceKind::Wgpu, n @ 2..) => {
            wrong(format!("--devices {n} with wgpu: several devices are CUDA's or the CPU's"))
        }
        (_, workers) => Ok(Team { device, workers, gpus: Vec::new() }),
    }
}

/// The first CUDA device, if there is one and what computes on it can be loaded; else the CPU.
fn automatic() -> ComputeDevice {
    let Ok(device) = cuda(0) else { return cpu() };
    #[cfg(feature = "native")]
    if let Some(reason) = dlm_engine::obstacle(0) {
        let name = format!("cpu (there is an NVIDIA GPU, but {reason})");
        return ComputeDevice { name, ..cpu() };
    }
    device
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

#[cfg(not(feature = "native"))]
fn cuda(_index: usize) -> Result<ComputeDevice> {
    Err(Error::Device(
        "this dlm-train was built without CUDA (cargo feature native, which is on by default); use --device cpu".into(),
    ))
}

/// The GPU with this CUDA index. Burn's handle is that of its CUDA backend where the build has it,
/// else that of the CPU; [`check_burn`] says whether Burn can compute there.
#[cfg(feature = "native")]
fn cuda(index: usize) -> Result<ComputeDevice> {
    let count = dlm_engine::device_count().map_err(|e| Error::Device(e.to_string()))?;
    if index >= count {
        return Err(Error::Device(format!(
            "cuda:{index} was asked for but the driver shows {count} CUDA devices; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )));
    }
    #[cfg(feature = "cuda")]
    let device = Device::cuda(index);
    #[cfg(not(feature = "cuda"))]
    let device = Device::flex();
    Ok(ComputeDevice { device, kind: DeviceKind::Cuda(index), name: format!("cuda:{index}") })
}

/// Refuses a device on which Burn cannot compute, with the reason: a CUDA device in a build without
/// Burn's CUDA backend, or on a machine that lacks what that backend loads.
pub(crate) fn check_burn(device: &ComputeDevice) -> Result<()> {
    match device.kind {
        DeviceKind::Cuda(_) => burn_cuda_is_usable(),
        DeviceKind::Cpu | DeviceKind::Wgpu => Ok(()),
    }
}

#[cfg(not(feature = "cuda"))]
fn burn_cuda_is_usable() -> Result<()> {
    Err(Error::Device(
        "Burn would have to compute this on CUDA, and this dlm-train was built without Burn's CUDA backend; build it with `cargo build --release --features dlm-train/cuda` or use --device cpu".into(),
    ))
}

#[cfg(feature = "cuda")]
fn burn_cuda_is_usable() -> Result<()> {
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
    Ok(())
}

#[cfg(feature = "cuda")]
fn library_loads(names: &[&str]) -> bool {
    names.iter().any(|n| {
        let Ok(c) = std::ffi::CString::new(*n) else {
            return false;
        };
        // SAFETY: `c` is NUL-terminated and outlives the call. Loading runs the initialisers of
        // NVIDIA's own libraries, which Burn loads next anyway; the handle is never closed.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_is_named_once_and_counted() {
        let refused = |spec: &str, devices| choose_team(spec, devices).unwrap_err().to_string();
        assert!(refused("cuda:1,1", None).contains("twice"));
        assert!(refused("cuda:0,1", Some(3)).contains("names 2 GPUs"));
        assert!(refused("cuda:0,x", None).contains("such as cuda:0,1"));
        assert!(refused("cpu", Some(0)).contains("1 or more"));
        let team = choose_team("cpu", Some(3)).unwrap();
        assert_eq!((team.workers, team.gpus.len(), team.device.kind), (3, 0, DeviceKind::Cpu));
        // whatever does not train takes one
        let said = choose("cuda:0,1").unwrap_err().to_string();
        assert!(said.contains("only training") && said.contains("--device cuda:0"), "{said}");
        assert!(choose("cuda0").unwrap_err().to_string().contains("expected auto"));
    }
}
