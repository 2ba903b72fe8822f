//! Kernels as steps of graphs.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUcontext, CUgraph, CUgraphNode};

use super::driver::{Error, check};
use super::kernels::{DevicePart, Kernel, Kernels, Pattern};
use super::params::{self, THREADS};

/// A graph does not know how many multiprocessors it will run on: enough to fill memory at its speed.
const FILL_BLOCKS_MAX: u32 = 128;

/// A graph that is being made, and what of it comes before something that is added.
#[derive(Clone, Copy, Debug)]
pub struct After<'a> {
    /// The graph.
    pub graph: CUgraph,
    /// The context that the kernel runs in, which may be a green one.
    pub context: CUcontext,
    /// What must have ended.
    pub steps: &'a [CUgraphNode],
}

impl Kernels {
    /// Adds a [`fill`](Self::fill) to a graph.
    ///
    /// # Panics
    /// As [`fill`](Self::fill).
    ///
    /// # Safety
    /// Graph and context are live and of one device, and the steps are the graph's. Whenever it
    /// runs, as of [`Kernels::bools`].
    pub unsafe fn add_fill(
        &self,
        after: After<'_>,
        part: DevicePart,
        pattern: Pattern,
    ) -> Result<CUgraphNode, Error> {
        let it = params::Fill::new(part, pattern);
        let mut params = [ptr::from_ref(&it).cast::<c_void>().cast_mut()];
        let kernel = sys::CUDA_KERNEL_NODE_PARAMS {
            func: ptr::null_mut(),
            gridDimX: it.tiles().clamp(1, FILL_BLOCKS_MAX),
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: THREADS,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            kernelParams: params.as_mut_ptr(),
            extra: ptr::null_mut(),
            kern: self.kernels[Kernel::Fill as usize],
            ctx: after.context,
        };
        let (mut added, steps) = (ptr::null_mut(), after.steps);
        // SAFETY: by the contract; the driver copies the steps and the one structure.
        let result = unsafe {
            sys::cuGraphAddKernelNode_v2(
                &mut added,
                after.graph,
                steps.as_ptr(),
                steps.len(),
                &kernel,
            )
        };
        check(result, "cuGraphAddKernelNode", Kernel::Fill.text())?;
        Ok(added)
    }
}
