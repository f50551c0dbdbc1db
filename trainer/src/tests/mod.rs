//! Tests across several rooms of this crate, on the models and reference tensors of tests/fixtures.

mod continuous;
mod decode_reference;
mod layouts;
mod optim_reference;
mod packed_ternary;
mod quantisers;
mod sampled;
mod text_stream;
