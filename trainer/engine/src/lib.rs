//! Training passes of a block-diffusion decoder on an NVIDIA GPU.
//!
//! In: the shape of a decoder ([`Shape`]), its weights, and batches of token streams with who sees
//! whom ([`Batch`]). Out: losses, gradients in fp32, AdamW updates. Master weights, moments and
//! gradients are fp32; activations and matrix products are bf16 with fp32 accumulation.
//!
//! The kernels are CUDA C++ (`src/kernels`), compiled by NVRTC for the model's sizes when the
//! engine starts; matrix products are cuBLAS's. Both libraries are loaded at run time, so the build
//! needs no CUDA toolkit. Everything is queued on one stream and every sum has one order, so the
//! same batch gives the same bits; the host waits once per optimizer step.
//!
//! Shape legend: T tokens of all streams, N predicted targets, E hidden_size, F intermediate_size,
//! H query heads, K key/value heads, D head_dim.
//!
//! | file | what it holds |
//! |---|---|
//! | `engine`, `decode` | the calls: training, and passes behind a cache of keys and values |
//! | `team` | several engines that train one model, each on its GPU |
//! | `backward`, `forward`, `beside` | the passes, kernel by kernel; what adapters add to them |
//! | `distill` | losses beside what the source predicts |
//! | `places` | where a pass puts its activations |
//! | `model`, `frozen` | weights, gradients and moments on the GPU; weights that are not trained |
//! | `frozen_values` | values of those to and from the GPU |
//! | `adapters` | low-rank adapters and where their parameters stand |
//! | `streams`, `batch`, `row_lists`, `cache`, `arena` | what callers give, index arrays of a batch, cached keys, memory for activations |
//! | `blas`, `program`, `profile` | cuBLAS, kernels by NVRTC, their times |
//! | `graphs` | decoding passes recorded and replayed |
//! | `grids`, `shape` | launch geometry; the model's sizes and where each parameter stands |
//! | `device`, `options`, `error` | the driver, choices, errors |

mod adapters;
mod arena;
mod backward;
mod batch;
mod beside;
mod blas;
mod cache;
mod decode;
mod device;
mod distill;
mod engine;
mod error;
mod forward;
mod frozen;
mod frozen_values;
mod graphs;
mod grids;
mod model;
mod options;
mod places;
mod profile;
mod program;
mod row_lists;
mod shape;
mod streams;
mod team;

pub use device::{device_count, free_memory, obstacle};
pub use engine::Engine;
pub use error::{Error, Result};
pub use options::{AdamwStep, Options, Precision, Share};
pub use places::{MemoryNeed, memory_need};
pub use profile::KernelTime;
pub use shape::{Adapters, LayerRole, Parameter, Role, Shape};
pub use streams::{Batch, CachedPass, Tile};
pub use team::Peer;
