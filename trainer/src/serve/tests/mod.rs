//! The server over real sockets, with a stand-in for the model or a tiny random one.

mod cancelled;
mod equal;
mod fields;
mod limits;
mod stops;
pub(super) mod support;
