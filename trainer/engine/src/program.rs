//! The kernels: compiled for one model and one GPU when the engine starts, and launched by name.
#![allow(unsafe_code, reason = "the CUDA driver is a C library")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;

use cudarc::driver::{result, sys};
use cudarc::nvrtc::{self, CompileOptions};

use crate::device::Device;
use crate::error::{Error, Named, Result};
use crate::options::Precision;
use crate::profile::Profile;

/// All kernels in one translation unit; later files use what earlier ones define.
const SOURCES: [&str; 6] = [
    include_str!("kernels/common.cu"),
    include_str!("kernels/layers.cu"),
    include_str!("kernels/distill.cu"),
    include_str!("kernels/update.cu"),
    include_str!("kernels/quantize.cu"),
    include_str!("kernels/decode.cu"),
];
/// Attention for each precision.
const ATTENTION_BF16: &str = include_str!("kernels/attention.cu");
const ATTENTION_FP32: &str = include_str!("kernels/attention_fp32.cu");

/// A value that a kernel takes: the bits of an address or a number.
#[derive(Clone, Copy)]
pub(crate) struct Arg(u64);

impl From<u64> for Arg {
    fn from(address: u64) -> Self {
        Arg(address)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Arg(u64::from(value as u32))
    }
}

impl From<usize> for Arg {
    /// A 32-bit count. Counts that need more are passed as `i64`.
    fn from(value: usize) -> Self {
        debug_assert!(value <= i32::MAX as usize);
        Arg(value as u64)
    }
}

impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Arg(value as u64)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg(u64::from(value.to_bits()))
    }
}

/// Where a kernel runs: blocks, threads in each, and bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub blocks: (usize, usize),
    pub threads: usize,
    pub shared: usize,
}

impl Grid {
    pub(crate) fn new(blocks: usize, threads: usize) -> Self {
        Grid { blocks: (blocks, 1), threads, shared: 0 }
    }

    /// Enough blocks of `threads` for one thread per item.
    pub(crate) fn over(items: usize, threads: usize) -> Self {
        Grid::new(items.div_ceil(threads), threads)
    }
}

/// Compiled kernels on a device.
pub(crate) struct Program {
    device: Rc<Device>,
    module: sys::CUmodule,
    /// Kernels that were launched before, with the dynamic shared memory that they are set up for.
    functions: RefCell<HashMap<&'static str, (sys::CUfunction, usize)>>,
    pub(crate) profile: Rc<RefCell<Profile>>,
}

impl Program {
    /// Compiles the kernels; `defines` are the sizes of the model.
    pub(crate) fn compile(
        device: &Rc<Device>,
        defines: &[(&str, String)],
        precision: Precision,
        profile: &Rc<RefCell<Profile>>,
    ) -> Result<Self> {
        // SAFETY: only asks whether the library can be loaded.
        if !unsafe { nvrtc::sys::is_culib_present() } {
            return Err(Error::Missing(
                "libnvrtc could not be loaded; install the CUDA toolkit's NVRTC (or pip's nvidia-cuda-nvrtc) and put it on LD_LIBRARY_PATH".into(),
            ));
        }
        let (major, minor) = device.capability()?;
        device.check_capability()?;
        let options =
            vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++17".into()];
        let mut source = String::new();
        for (name, value) in defines {
            source += &format!("#define {name} {value}\n");
        }
        let attention = match precision {
            Precision::Bf16 => ATTENTION_BF16,
            Precision::Fp32 => {
                source += "#define FP32 1\n";
                ATTENTION_FP32
            }
        };
        source += &SOURCES.join("\n");
        source += attention;
        let compiled =
            nvrtc::compile_ptx_with_opts(&source, CompileOptions { options, ..Default::default() });
        let ptx = compiled.map_err(|e| Error::Compile(format!("{e:?}")))?.to_src();
        let image = CString::new(ptx).map_err(|e| Error::Compile(e.to_string()))?;
        device.enter()?;
        // SAFETY: `image` is NUL-terminated PTX.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.named("loading the kernels")?;
        Ok(Program {
            device: device.clone(),
            module,
            functions: RefCell::default(),
            profile: profile.clone(),
        })
    }

    /// The kernel of this name, allowed to use `shared` bytes of dynamic shared memory.
    fn function(&self, name: &'static str, shared: usize) -> Result<sys::CUfunction> {
        let mut functions = self.functions.borrow_mut();
        if let Some((function, allowed)) = functions.get(name)
            && *allowed >= shared
        {
            return Ok(*function);
        }
        let text = CString::new(name).map_err(|e| Error::Compile(e.to_string()))?;
        // SAFETY: the module is loaded as long as `self` lives.
        let function = unsafe { result::module::get_function(self.module, text) };
        let function = function.named(&format!("finding the kernel {name}"))?;
        // 48 KiB minus what kernels take statically are allowed without asking
        if shared > 16 << 10 {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let carveout =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            for (attribute, value) in [(attribute, shared as i32), (carveout, 100)] {
                // SAFETY: sets an attribute of a function of a loaded module.
                unsafe { result::function::set_function_attribute(function, attribute, value) }
                    .named(&format!("giving {name} {shared} bytes of shared memory"))?;
            }
        }
        functions.insert(name, (function, shared));
        Ok(function)
    }

    /// Queues a kernel. The types of `args` must be those of its parameters.
    pub(crate) fn launch(&self, name: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        let function = self.function(name, grid.shared)?;
        let mut values: Vec<u64> = args.iter().map(|arg| arg.0).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let blocks = (grid.blocks.0 as u32, grid.blocks.1 as u32, 1);
        let threads = (grid.threads as u32, 1, 1);
        let stream = self.device.stream();
        self.profile.borrow_mut().around(stream, name, 0.0, || {
            // SAFETY: every parameter is at most eight bytes and starts at its value's first byte;
            // addresses point into buffers of the engine, which live longer than the queued work.
            unsafe {
                result::launch_kernel(
                    function,
                    blocks,
                    threads,
                    grid.shared as u32,
                    stream,
                    &mut pointers,
                )
            }
            .named(&format!("launching {name} on {grid:?}"))
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            let _ = self.device.wait();
            // SAFETY: nothing of the module runs any more.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// Launches a kernel with arguments of different types.
macro_rules! launch {
    ($program:expr, $name:literal, $grid:expr, $($arg:expr),+ $(,)?) => {
        $program.launch($name, $grid, &[$($crate::program::Arg::from($arg)),+])
    };
}
pub(crate) use launch;
