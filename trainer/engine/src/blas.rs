//! Matrix products by cuBLAS: bf16 in, fp32 accumulated, bf16 or fp32 out; or fp32 throughout.
//!
//! All matrices are stored by rows. cuBLAS thinks in columns, so each product below is written as
//! that of the transposes.
#![allow(unsafe_code, reason = "cuBLAS is a C library")]

use std::rc::Rc;

use cudarc::cublas::{result, sys};

use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::options::Precision;
use crate::profile::Profile;

/// Bytes that cuBLAS may use for products that are split along their inner dimension.
const WORKSPACE: usize = 64 << 20;

/// A cuBLAS handle that queues on the engine's stream.
pub(crate) struct Blas {
    precision: Precision,
    device: Rc<Device>,
    handle: sys::cublasHandle_t,
    _workspace: Buffer,
}

/// A product: how the matrices are read, their sizes as cuBLAS counts them, and where they are.
struct Product {
    name: &'static str,
    transpose: (bool, bool),
    sizes: (usize, usize, usize),
    a: (u64, usize),
    b: (u64, usize),
    c: (u64, usize),
    fp32_out: bool,
    accumulate: bool,
    factor: f32,
}

/// What products of adapters have in common unless they say otherwise.
const ADAPTER: Product = Product {
    name: "gemm_adapter",
    transpose: (false, false),
    sizes: (0, 0, 0),
    a: (0, 0),
    b: (0, 0),
    c: (0, 0),
    fp32_out: false,
    accumulate: false,
    factor: 1.0,
};

/// A matrix by rows: its address, and the elements between two rows.
pub(crate) type Rows = (u64, usize);

/// A factor on a product, and whether it is added to what is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    pub factor: f32,
    pub accumulate: bool,
}

impl Blas {
    /// Loads the library.
    pub(crate) fn new(device: &Rc<Device>, precision: Precision) -> Result<Self> {
        // SAFETY: only asks whether the library can be loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Missing(
                "libcublas could not be loaded; install the CUDA toolkit's cuBLAS (or pip's nvidia-cublas) and put it on LD_LIBRARY_PATH".into(),
            ));
        }
        device.enter()?;
        let failed = |what: &str| {
            let what = what.to_string();
            move |source| Error::Blas { what, source }
        };
        let handle = result::create_handle().map_err(failed("starting the library"))?;
        let workspace = device.allocate(WORKSPACE, "cuBLAS's workspace")?;
        let blas = Blas { precision, device: device.clone(), handle, _workspace: workspace };
        let at = blas._workspace.address() as *mut _;
        // SAFETY: the handle, the stream and the workspace live as long as `blas`.
        unsafe {
            result::set_stream(handle, device.stream().cast())
                .map_err(failed("setting the stream"))?;
            sys::cublasSetWorkspace_v2(handle, at, WORKSPACE)
                .result()
                .map_err(failed("setting the workspace"))?;
        }
        Ok(blas)
    }

    /// `y [t, o] = x [t, i] · wᵀ` with `w` `[o, i]`; the rows of `y` are `stride` elements apart.
    pub(crate) fn forward(
        &self,
        profile: &mut Profile,
        x: u64,
        w: u64,
        y: u64,
        (t, o, i): (usize, usize, usize),
        stride: usize,
    ) -> Result<()> {
        self.multiply(
            profile,
            Product {
                name: "gemm_forward",
                transpose: (true, false),
                sizes: (o, t, i),
                a: (w, i),
                b: (x, i),
                c: (y, stride),
                fp32_out: false,
                accumulate: false,
                factor: 1.0,
            },
        )
    }

    /// As [`Blas::forward`], with `y` in fp32.
    pub(crate) fn forward_fp32(
        &self,
        profile: &mut Profile,
        x: u64,
        w: u64,
        y: u64,
        (t, o, i): (usize, usize, usize),
    ) -> Result<()> {
        self.multiply(
            profile,
            Product {
                name: "gemm_forward",
                transpose: (true, false),
                sizes: (o, t, i),
                a: (w, i),
                b: (x, i),
                c: (y, o),
                fp32_out: true,
                accumulate: false,
                factor: 1.0,
            },
        )
    }

    /// `dx [t, i] = dy [t, o] · w` with `w` `[o, i]`; the rows of `dy` are `stride` apart.
    pub(crate) fn input_gradient(
        &self,
        profile: &mut Profile,
        dy: u64,
        w: u64,
        dx: u64,
        (t, o, i): (usize, usize, usize),
        stride: usize,
    ) -> Result<()> {
        self.multiply(
            profile,
            Product {
                name: "gemm_input_gradient",
                transpose: (false, false),
                sizes: (i, t, o),
                a: (w, i),
                b: (dy, stride),
                c: (dx, i),
                fp32_out: false,
                accumulate: false,
                factor: 1.0,
            },
        )
    }

    /// `dw [o, i] (+)= dyᵀ · x` in fp32 with `x` `[t, i]` and `dy` `[t, o]`, rows `stride` apart.
    #[allow(clippy::too_many_arguments, reason = "two matrices in, one out, sizes")]
    pub(crate) fn weight_gradient(
        &self,
        profile: &mut Profile,
        x: u64,
        dy: u64,
        dw: u64,
        (t, o, i): (usize, usize, usize),
        stride: usize,
        accumulate: bool,
    ) -> Result<()> {
        self.multiply(
            profile,
            Product {
                name: "gemm_weight_gradient",
                transpose: (false, true),
                sizes: (i, o, t),
                a: (x, i),
                b: (dy, stride),
                c: (dw, i),
                fp32_out: true,
                accumulate,
                factor: 1.0,
            },
        )
    }

    /// `y [t, o] (+)= factor · x [t, i] · wᵀ` with `w` `[o, i]`.
    pub(crate) fn adapter_forward(
        &self,
        profile: &mut Profile,
        (x, w, y): (Rows, u64, Rows),
        (t, o, i): (usize, usize, usize),
        Sum { factor, accumulate }: Sum,
    ) -> Result<()> {
        let (transpose, sizes, a) = ((true, false), (o, t, i), (w, i));
        self.multiply(
            profile,
            Product { transpose, sizes, a, b: x, c: y, accumulate, factor, ..ADAPTER },
        )
    }

    /// `dx [t, i] (+)= factor · dy [t, o] · w` with `w` `[o, i]`.
    pub(crate) fn adapter_input_gradient(
        &self,
        profile: &mut Profile,
        (dy, w, dx): (Rows, u64, Rows),
        (t, o, i): (usize, usize, usize),
        Sum { factor, accumulate }: Sum,
    ) -> Result<()> {
        let (sizes, a) = ((i, t, o), (w, i));
        self.multiply(profile, Product { sizes, a, b: dy, c: dx, accumulate, factor, ..ADAPTER })
    }

    /// `dw [o, i] += dyᵀ · x` in fp32 with `x` `[t, i]` and `dy` `[t, o]`.
    pub(crate) fn adapter_weight_gradient(
        &self,
        profile: &mut Profile,
        (x, dy, dw): (Rows, Rows, u64),
        (t, o, i): (usize, usize, usize),
    ) -> Result<()> {
        let (transpose, sizes, c) = ((false, true), (i, o, t), (dw, i));
        let (accumulate, fp32_out) = (true, true);
        self.multiply(
            profile,
            Product { transpose, sizes, a: x, b: dy, c, accumulate, fp32_out, ..ADAPTER },
        )
    }

    fn multiply(&self, profile: &mut Profile, p: Product) -> Result<()> {
        use sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let operation = |transposed| if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
        let (alpha, beta) = (p.factor, if p.accumulate { 1f32 } else { 0f32 });
        let element = match self.precision {
            Precision::Bf16 => CUDA_R_16BF,
            Precision::Fp32 => CUDA_R_32F,
        };
        let (m, n, k) = p.sizes;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let flop = 2.0 * m as f64 * n as f64 * k as f64;
        profile.around(self.device.stream(), p.name, flop, || {
            // SAFETY: callers pass matrices of the sizes they name, in buffers of the engine.
            unsafe {
                result::gemm_ex(
                    self.handle,
                    operation(p.transpose.0),
                    operation(p.transpose.1),
                    m as i32,
                    n as i32,
                    k as i32,
                    std::ptr::from_ref(&alpha).cast(),
                    p.a.0 as *const _,
                    element,
                    p.a.1 as i32,
                    p.b.0 as *const _,
                    element,
                    p.b.1 as i32,
                    std::ptr::from_ref(&beta).cast(),
                    p.c.0 as *mut _,
                    if p.fp32_out { CUDA_R_32F } else { element },
                    p.c.1 as i32,
                    sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
                )
            }
            .map_err(|source| Error::Blas { what: format!("{} {m} x {n} x {k}", p.name), source })
        })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            let _ = self.device.wait();
            // SAFETY: nothing that uses the handle runs any more.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}
