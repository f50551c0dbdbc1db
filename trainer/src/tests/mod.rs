//! Tests across several rooms of this crate, on the models and reference tensors of tests/fixtures.

mod adapter_folders;
mod adapters;
mod continuous;
mod decode_reference;
mod distilled;
mod fused_passes;
mod held_out;
mod layouts;
mod multi_block;
mod optim_reference;
mod packed_ternary;
mod quantisers;
mod sampled;
mod text_stream;
mod verify;
