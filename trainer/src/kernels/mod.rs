//! Operations that Burn offers only as long chains of small ones: single passes over memory, on the
//! CPU and on GPUs.
//!
//! | operation | in | out |
//! |---|---|---|
//! | [`cross_entropy`] | logits `[N, V]`, targets `[N]` | losses `[N]` fp32 and `scale ·` their gradient `[N, V]` |
//! | [`distill`] | logits `[N, V]`, a teacher's `[U, V]`, targets `[N]` | cross-entropies, divergences, same answers `[N, 3]` fp32, and `scale ·` the gradient of a mixture `[N, V]` |
//! | [`add_rows`] | table `[R, D]` fp32, rows `[N, D]`, destination of each row | the table with the rows added |
//! | [`adamw`] | weights, moments, gradient | new weights and moments |
//! | [`rms_norm`], [`rope`], [`gate`] | activations | activations; with gradients of their own |
//! | [`linear`] | activations, weight `[O, I]` | products, also with BitLinear quantisation |
//!
//! For decoding on the CPU, outside Burn: [`panels`], products of few rows, and [`team`], threads
//! for short phases.
//!
//! One folder per operation: `mod.rs` declares the operation (a trait over Burn's backends), the
//! function to call and, where callers need it, the composed form, which is made of Burn's own
//! operations; `cpu.rs` implements it for the CPU backend, `gpu.rs` as a CubeCL kernel (CUDA, and
//! wgpu in fp32). Tests compare every fast form with the composed one.

pub(crate) mod adamw;
pub(crate) mod add_rows;
pub(crate) mod cast;
pub(crate) mod cross_entropy;
#[cfg(feature = "gpu")]
pub(crate) mod cube;
pub(crate) mod distill;
pub(crate) mod flex;
pub(crate) mod gate;
pub(crate) mod linear;
pub(crate) mod most_probable;
pub(crate) mod panels;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod simd;
pub(crate) mod team;
#[cfg(test)]
pub(crate) mod test_support;

pub(crate) use adamw::{AdamwStep, adamw};
pub(crate) use add_rows::{RowIndex, add_rows};
pub(crate) use cross_entropy::cross_entropy;
pub(crate) use gate::Activation;
