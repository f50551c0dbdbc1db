//! dlm-prep.
fn main() {}
