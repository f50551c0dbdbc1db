//! Stand-in for `cubecl-llvm` 0.11.3, so that `burn/cuda` builds with nothing but the package
//! registry.
//!
//! The published crate downloads an LLVM bundle in its build script. `cubecl-cuda` only needs its
//! types when the CUDA C++ compiler (feature `cuda-cpp`, NVRTC at run time) is chosen, which this
//! workspace always does. Selecting the LLVM compiler anyway is an ordinary compilation error that
//! says so.

/// Names under `cubecl_llvm::nvptx`.
pub mod nvptx {
    /// PTX version selection.
    pub mod ptx_version {
        /// A PTX instruction-set version; never constructed here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(u32);

        impl PtxVersion {
            /// The newest PTX a driver accepts: unknown without LLVM.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "ptx{}", self.0)
            }
        }
    }
}

/// Names under `cubecl_llvm::shared`.
pub mod shared {
    /// Feature restriction for LLVM targets.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The GPU family to restrict for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA PTX.
            Nvptx,
        }

        /// The LLVM path strips features it cannot lower; the CUDA C++ path keeps them all.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

use cubecl_core::{
    Compiler,
    ir::{amd::GfxArch, nvidia::SmArch},
    prelude::KernelDefinition,
};
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::{compiler::CompilationError, kernel::BufferIOAttr};

/// What the compiler would emit for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// Host code.
    #[default]
    Cpu,
    /// NVIDIA PTX.
    Nvptx,
}

/// The LLVM compiler that is not here.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// Requested target.
    pub target: LlvmTarget,
}

/// Options the LLVM compiler would take.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// AMD architecture.
    pub arch: Option<GfxArch>,
    /// NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// PTX version.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Pass scalars as grid constants.
    pub grid_constants: bool,
    /// Keeps the struct open for the fields of the published crate.
    pub _private: (),
}

/// A compiled PTX module; never constructed here.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX text.
    pub ptx: Vec<core::ffi::c_char>,
    /// Kernel name.
    pub entrypoint: String,
    /// Intermediate representation, for dumps.
    pub ir: String,
    /// Shared memory in bytes.
    pub shared_memory_size: usize,
    /// Buffer directions.
    pub io: Vec<BufferIOAttr>,
}

/// What compilation would yield.
#[derive(Clone)]
pub enum PlironArtifact {
    /// Nothing.
    None,
    /// A PTX module.
    NvptxCode(NvptxModule),
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no LLVM in this build")
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM compiler for CUDA kernels; build with cubecl's `cuda-cpp` feature".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "ll"
    }
}
