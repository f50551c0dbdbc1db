//! Token ids and assistant spans to documents: which tokens carry loss, what is cut, padding to the
//! block grid.

pub mod block;
pub mod frame;
pub mod supervise;
pub mod truncate;
