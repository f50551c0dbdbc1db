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
//! | [`shape`] | the model's sizes; where each parameter stands |
//! | [`batch`] | index arrays of a batch: attention items, key tiles, sums by row |
//! | [`engine`] | the engine: weights in and out, the steps |
//! | [`forward`], [`backward`] | the passes |
//! | [`arena`], [`grids`] | memory for activations; launch geometry |
//! | [`program`], [`blas`], [`device`], [`profile`] | NVRTC, cuBLAS, driver, times |

mod arena;
mod backward;
mod batch;
mod blas;
mod device;
mod engine;
mod error;
mod forward;
mod grids;
mod profile;
mod program;
mod shape;

pub use batch::{Batch, Tile};
pub use engine::{AdamwStep, Engine, Options};
pub use error::{Error, Result};
pub use profile::KernelTime;
pub use shape::{LayerRole, Parameter, Role, Shape};
