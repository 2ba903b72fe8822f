//! Captured forwards, as the driver launches them fastest.
//!
//! A graph whose steps are kernels of one context, one after another, is launched in a few microseconds
//! however many they are; with anything else among them, each of them costs its part. What else there
//! is are the few hundred bytes that libraries set to zero between their kernels; each such step
//! becomes a kernel of ours. For ResNet-50 (227 steps, nine of them such) a launch takes 5 us instead
//! of 21 on an H100, and the device 13 us less.

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use cudarc::driver::sys::{self, CUgraphNodeType, CUresult};
use gpulet_kernels::cuda::{After, DevicePart, Kernels, Pattern};
use gpulet_torch::cuda::Graph as Captured;

use super::driver::{CudaError, Stream, check};

/// One step of a graph.
type Step = sys::CUgraphNode;

/// A forward that is launched as a whole.
pub(super) struct Graph {
    raw: NonNull<sys::CUgraphExec_st>,
    _captured: Captured,
}

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Graph {}
// SAFETY: it only tells its handle.
unsafe impl Sync for Graph {}

impl Graph {
    /// Makes of `captured` what is launched on streams of the context that `stream` is of. The kernels
    /// stay loaded for as long as it lives.
    ///
    /// # Errors
    /// [`CudaError`].
    pub(super) fn new(
        captured: Captured,
        stream: &Stream,
        kernels: Option<&Kernels>,
    ) -> Result<Graph, CudaError> {
        let graph = captured.raw().cast();
        if let Some(kernels) = kernels {
            let context = stream.context()?;
            for step in steps(graph)? {
                // SAFETY: a step of a live graph, of which nothing is instantiated yet.
                unsafe { into_kernel(After { graph, context, steps: &[] }, step, kernels) }?;
            }
        }
        let mut raw = ptr::null_mut();
        // SAFETY: the graph is live; the out-parameter is valid.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, graph, 0) };
        check(code, "cuGraphInstantiate")?;
        let missing = CudaError { what: "cuGraphInstantiate", name: "gave no graph".to_owned() };
        let raw = NonNull::new(raw).ok_or(missing)?;
        let made = Graph { raw, _captured: captured };
        // Or the first batch would wait for it.
        // SAFETY: a live graph.
        unsafe { stream.upload(made.exec()) }?;
        Ok(made)
    }

    /// Valid as long as this is.
    pub(super) fn exec(&self) -> *mut std::ffi::c_void {
        self.raw.as_ptr().cast()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated by us and destroyed once, before what it was made of.
        let _ = unsafe { sys::cuGraphExecDestroy(self.raw.as_ptr()) };
    }
}

fn steps(graph: sys::CUgraph) -> Result<Vec<Step>, CudaError> {
    let list = |steps: *mut Step, count: &mut usize| {
        // SAFETY: the graph is live; there is room for so many steps, or none are written.
        check(unsafe { sys::cuGraphGetNodes(graph, steps, count) }, "cuGraphGetNodes")
    };
    listed(list)
}

/// What a function of the driver lists that writes how many there are, and those there is room for.
fn listed(
    list: impl Fn(*mut Step, &mut usize) -> Result<(), CudaError>,
) -> Result<Vec<Step>, CudaError> {
    let mut count = 0;
    list(ptr::null_mut(), &mut count)?;
    let mut all = vec![ptr::null_mut(); count];
    if count > 0 {
        list(all.as_mut_ptr(), &mut count)?;
    }
    all.truncate(count);
    Ok(all)
}

/// Puts a kernel in a step's place, if all that it does is to fill memory.
///
/// # Safety
/// A step of this graph, of which nothing is instantiated; the kernels stay loaded as long as it.
unsafe fn into_kernel(at: After<'_>, step: Step, kernels: &Kernels) -> Result<(), CudaError> {
    let mut kind = CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
    // SAFETY: a step by the contract; the out-parameter is valid.
    check(unsafe { sys::cuGraphNodeGetType(step, &mut kind) }, "cuGraphNodeGetType")?;
    if kind != CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMSET {
        return Ok(());
    }
    let mut fills = MaybeUninit::<sys::CUDA_MEMSET_NODE_PARAMS>::zeroed();
    // SAFETY: as above, and of this kind.
    let code = unsafe { sys::cuGraphMemsetNodeGetParams(step, fills.as_mut_ptr()) };
    check(code, "cuGraphMemsetNodeGetParams")?;
    // SAFETY: filled in by the call; zeroes are a value of it as well.
    let fills = unsafe { fills.assume_init() };
    let pattern = match (fills.height, fills.elementSize) {
        (1, 1) => Pattern::U8(fills.value as u8),
        (1, 2) => Pattern::U16(fills.value as u16),
        (1, 4) => Pattern::U32(fills.value),
        // A rectangle stays what it is.
        _ => return Ok(()),
    };
    let bytes = fills.width as u64 * u64::from(fills.elementSize);
    let part = DevicePart { address: fills.dst, bytes };
    // SAFETY: a step by the contract; there is room for so many, or none are written.
    let (before, after) = unsafe {
        (
            around(step, sys::cuGraphNodeGetDependencies_v2)?,
            around(step, sys::cuGraphNodeGetDependentNodes_v2)?,
        )
    };
    let at = After { steps: &before, ..at };
    // SAFETY: the same memory is filled at the same place among the steps.
    let kernel = unsafe { kernels.add_fill(at, part, pattern) }.map_err(CudaError::of_kernel)?;
    for next in after {
        // SAFETY: two steps of one graph.
        let code =
            unsafe { sys::cuGraphAddDependencies_v2(at.graph, &kernel, &next, ptr::null(), 1) };
        check(code, "cuGraphAddDependencies")?;
    }
    // SAFETY: a step that nobody else knows of.
    check(unsafe { sys::cuGraphDestroyNode(step) }, "cuGraphDestroyNode")
}

/// Steps that a step comes after, or before.
///
/// # Safety
/// A live step.
unsafe fn around(
    step: Step,
    list: unsafe fn(Step, *mut Step, *mut sys::CUgraphEdgeData, *mut usize) -> CUresult,
) -> Result<Vec<Step>, CudaError> {
    listed(|steps, count| {
        let mut edges = vec![MaybeUninit::<sys::CUgraphEdgeData>::zeroed(); *count];
        let edges = if steps.is_null() { ptr::null_mut() } else { edges.as_mut_ptr().cast() };
        // SAFETY: there is room for so many steps and edges, or none are written.
        check(unsafe { list(step, steps, edges, count) }, "a step's place in its graph")
    })
}
