//! One GPU: its context, the stream that all work goes to, and its memory.
#![allow(unsafe_code, reason = "the CUDA driver is a C library")]

use std::rc::Rc;

use cudarc::driver::{result, sys};

use crate::error::{Error, Named, Result};

/// A GPU and one stream on it. Everything that the engine does is queued on that stream in order.
pub(crate) struct Device {
    ordinal: i32,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

/// A GPU of another engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerDevice {
    ordinal: i32,
    /// Its context; a number, so that it may be told to other threads.
    context: usize,
}

/// CUDA devices that the driver shows.
///
/// # Errors
/// [`Error::Missing`] without a driver.
pub fn device_count() -> Result<usize> {
    // SAFETY: only asks whether the library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Missing(
            "no NVIDIA driver: libcuda.so could not be loaded; install the driver or use --device cpu"
                .into(),
        ));
    }
    // a driver without a card refuses to start
    if let Err(error) = result::init() {
        return Err(Error::Missing(format!("the NVIDIA driver shows no GPU: {error}")));
    }
    Ok(result::device::get_count().named("counting the GPUs")?.max(0) as usize)
}

/// Why an engine cannot be made on this GPU, in words; none where it can. Makes a context for a
/// moment.
pub fn obstacle(index: usize) -> Option<String> {
    // SAFETY: only asks whether the libraries can be loaded.
    let (nvrtc, blas) = unsafe {
        (cudarc::nvrtc::sys::is_culib_present(), cudarc::cublas::sys::is_culib_present())
    };
    for (present, library) in [(nvrtc, "libnvrtc"), (blas, "libcublas")] {
        if !present {
            return Some(format!("{library} could not be loaded: is it on LD_LIBRARY_PATH?"));
        }
    }
    match Device::open(index).and_then(|device| device.check_capability()) {
        Ok(()) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Bytes of memory that are free on the GPU with this CUDA index.
///
/// # Errors
/// Where there is no driver or no such GPU.
pub fn free_memory(index: usize) -> Result<usize> {
    Ok(Device::open(index)?.memory()?.0)
}

impl Device {
    /// Opens the GPU with this CUDA index.
    ///
    /// # Errors
    /// Where there is no driver or no such GPU.
    pub(crate) fn open(index: usize) -> Result<Rc<Self>> {
        device_count()?;
        let ordinal = index as i32;
        let device = result::device::get(ordinal).named("opening the GPU")?;
        // SAFETY: `device` comes from the driver; the primary context is released in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.named("making a context")?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.named("entering the context")?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .named("making a stream")?;
        Ok(Rc::new(Device { ordinal, context, stream }))
    }

    /// Makes the device that of the calling thread; every entry into the engine does so.
    pub(crate) fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.named("entering the context")
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Compute capability, such as (9, 0).
    pub(crate) fn capability(&self) -> Result<(i32, i32)> {
        use sys::CUdevice_attribute_enum as A;
        let device = result::device::get(self.ordinal).named("opening the GPU")?;
        let ask = |attribute| {
            // SAFETY: reads an attribute of a device that the driver named.
            unsafe { result::device::get_attribute(device, attribute) }
                .named("asking for the compute capability")
        };
        Ok((
            ask(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }

    /// Refuses GPUs that the kernels are not written for.
    pub(crate) fn check_capability(&self) -> Result<()> {
        let (major, minor) = self.capability()?;
        if major >= 8 {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "the GPU has compute capability {major}.{minor}; the engine needs 8.0 (Ampere) or newer"
        )))
    }

    /// Streaming multiprocessors.
    pub(crate) fn multiprocessors(&self) -> Result<usize> {
        let device = result::device::get(self.ordinal).named("opening the GPU")?;
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: reads an attribute of a device that the driver named.
        let n = unsafe { result::device::get_attribute(device, attribute) };
        Ok(n.named("asking for the number of multiprocessors")?.max(1) as usize)
    }

    /// Bytes of device memory: free and in all.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        result::mem_get_info().named("asking for free memory")
    }

    /// Waits for everything that was queued.
    ///
    /// # Errors
    /// When a kernel failed.
    pub(crate) fn wait(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.named("waiting for the GPU")
    }

    /// Device memory, not initialised.
    pub(crate) fn allocate(self: &Rc<Self>, bytes: usize, what: &'static str) -> Result<Buffer> {
        self.enter()?;
        // SAFETY: a plain allocation; `Buffer` frees it.
        let address = unsafe { result::malloc_sync(bytes.max(256)) };
        match address {
            Ok(address) => Ok(Buffer { device: self.clone(), address, bytes: bytes.max(256) }),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free);
                Err(Error::OutOfMemory { what, bytes, free })
            }
            Err(source) => Err(Error::Driver { what: format!("allocating {what}"), source }),
        }
    }

    /// Queues a copy to the device.
    pub(crate) fn upload<T: bytemuck::Pod>(&self, to: u64, values: &[T]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: callers pass addresses inside buffers that are long enough. A copy from ordinary
        // memory has read all of `values` when the call returns.
        unsafe { result::memcpy_htod_async(to, values, self.stream) }.named("copying to the GPU")
    }

    /// Copies from the device and waits for it.
    pub(crate) fn download<T: bytemuck::Pod>(&self, from: u64, values: &mut [T]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: as for `upload`; the stream is waited for before `values` is used.
        unsafe { result::memcpy_dtoh_async(values, from, self.stream) }
            .named("copying from the GPU")?;
        self.wait()
    }

    /// Queues a copy from one place on the device to another.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: callers pass ranges inside buffers that do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .named("copying on the GPU")
    }

    /// Lets this GPU read the memory of another one directly where the machine can; where it
    /// cannot, copies go through host memory.
    pub(crate) fn reach(&self, other: PeerDevice) -> Result<()> {
        self.enter()?;
        let (mut can, ordinal) = (0, self.ordinal);
        // SAFETY: asks about two devices that the driver named.
        let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, ordinal, other.ordinal) };
        asked.result().named("asking whether GPUs reach each other")?;
        if can == 0 {
            return Ok(());
        }
        // SAFETY: the other context lives as long as its engine, which the team keeps.
        match unsafe { sys::cuCtxEnablePeerAccess(other.context as sys::CUcontext, 0) } {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            answer => answer.result().named("letting GPUs reach each other"),
        }
    }

    /// This GPU, as others name it.
    pub(crate) fn as_peer(&self) -> PeerDevice {
        PeerDevice { ordinal: self.ordinal, context: self.context as usize }
    }

    /// Queues a copy from another GPU.
    pub(crate) fn copy_from(
        &self,
        other: PeerDevice,
        to: u64,
        from: u64,
        bytes: usize,
    ) -> Result<()> {
        let there = other.context as sys::CUcontext;
        // SAFETY: callers pass ranges inside buffers of the two GPUs.
        unsafe { sys::cuMemcpyPeerAsync(to, self.context, from, there, bytes, self.stream) }
            .result()
            .named("copying from another GPU")
    }

    /// Queues the filling of memory with zero bytes.
    pub(crate) fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: callers pass ranges inside buffers.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream) }.named("clearing memory")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: nothing uses the stream any more; the context was retained in `open`.
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
                if let Ok(device) = result::device::get(self.ordinal) {
                    let _ = result::primary_ctx::release(device);
                }
            }
        }
    }
}

/// Device memory; freed when dropped.
pub(crate) struct Buffer {
    device: Rc<Device>,
    address: u64,
    bytes: usize,
}

impl Buffer {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: the address came from `malloc_sync`; `cuMemFree` waits for work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
