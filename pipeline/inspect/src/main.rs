//! dlm-inspect.
fn main() {}
