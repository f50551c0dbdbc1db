//! dlm-train.
fn main() {}
