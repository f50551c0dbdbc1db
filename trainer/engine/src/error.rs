//! What can go wrong on the GPU, in words for the person who started the run.

use cudarc::cublas::result::CublasError;
use cudarc::driver::DriverError;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library of NVIDIA's is missing.
    #[error("{0}")]
    Missing(String),
    /// The model, or a batch, is of a kind that the engine does not compute.
    #[error("{0}")]
    Unsupported(String),
    /// The device has not enough memory left.
    #[error("out of device memory: {bytes} bytes were asked for ({what}), {free} are free")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that were free.
        free: usize,
    },
    /// The driver refused a call, or a kernel failed.
    #[error("CUDA: {what} failed: {source}")]
    Driver {
        /// The call.
        what: String,
        /// What the driver said.
        source: DriverError,
    },
    /// cuBLAS refused a matrix product.
    #[error("cuBLAS: {what} failed: {source}")]
    Blas {
        /// The product with its sizes.
        what: String,
        /// What the library said.
        source: CublasError,
    },
    /// The kernels do not compile.
    #[error("the GPU kernels do not compile: {0}")]
    Compile(String),
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Names the call that a driver error comes from.
pub(crate) trait Named<T> {
    fn named(self, what: &str) -> Result<T>;
}

impl<T> Named<T> for std::result::Result<T, DriverError> {
    fn named(self, what: &str) -> Result<T> {
        self.map_err(|source| Error::Driver { what: what.to_string(), source })
    }
}
