//! `shim.h`, item for item: raw types, and the table of its functions in one opened library.
//!
//! Nothing here checks anything; the modules beside it do.

use std::ffi::{c_char, c_void};

/// `GTORCH_ABI`.
pub const ABI: i32 = 1;
/// `GTORCH_RANK_MAX`.
pub const RANK_MAX: usize = 8;
/// `GTORCH_RUN_PROFILE`.
pub const RUN_PROFILE: u32 = 1;

/// `enum gtorch_status`.
pub mod status {
    pub const OK: i32 = 0;
    pub const BAD_PATH: i32 = 1;
    pub const BAD_ARCHIVE: i32 = 2;
    pub const BAD_ARGUMENT: i32 = 3;
    pub const BAD_OUTPUT: i32 = 4;
    pub const MODEL_RAISED: i32 = 5;
    pub const OUT_OF_MEMORY: i32 = 6;
}

/// `gtorch_tensor`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub data: *mut c_void,
    pub bytes: u64,
    pub dtype: i32,
    pub rank: i32,
    pub dims: [i64; RANK_MAX],
}

const _: () = assert!(size_of::<Tensor>() == 88 && align_of::<Tensor>() == 8);

/// `gtorch_signature`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Signature {
    pub input_count: i32,
    pub input_required: i32,
    pub output_count: i32,
    pub takes_out: i32,
    pub mutates: i32,
    pub reserved: i32,
    pub weight_bytes: u64,
}

const _: () = assert!(size_of::<Signature>() == 32);

/// `gtorch_report`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    pub input_bytes_copied: u64,
    pub output_bytes_copied: u64,
    pub outputs_in_place: u64,
    pub input_lowest: u64,
    pub input_highest: u64,
}

const _: () = assert!(size_of::<Report>() == 40);

/// `gtorch_module`: never looked into.
#[repr(C)]
pub struct Module {
    _opaque: [u8; 0],
}

/// Declares a function table and the code that fills it from a library.
macro_rules! functions {
    ($table:ident {
        $($name:ident = $symbol:literal: fn($($arg:ty),*) $(-> $ret:ty)?;)*
    }) => {
        /// A shim's functions. Every pointer is valid as long as the library stays open, which
        /// is for ever: libtorch's threads make unloading it unsound.
        #[derive(Debug)]
        pub struct $table {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl $table {
            /// Looks every function up.
            ///
            /// # Safety
            /// `library` must be a shim whose header is this one (same ABI number), and must
            /// never be closed.
            pub unsafe fn load(
                library: &libloading::os::unix::Library,
            ) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the caller vouches that the symbol has the type of shim.h,
                        // which is the type written below.
                        unsafe { *library.get($symbol)? }
                    },)*
                })
            }
        }
    };
}

functions! { Functions {
    error_text = b"gtorch_error_text": fn() -> *const c_char;
    config = b"gtorch_config": fn(*mut c_char, usize) -> i32;
    set_threads = b"gtorch_set_threads": fn(i32) -> i32;
    set_interop_threads = b"gtorch_set_interop_threads": fn(i32) -> i32;
    threads = b"gtorch_threads": fn(*mut i32, *mut i32) -> i32;
    load_path = b"gtorch_module_load_path": fn(*const c_char, *mut *mut Module) -> i32;
    load_buffer = b"gtorch_module_load_buffer": fn(*const c_void, usize, *mut *mut Module) -> i32;
    define = b"gtorch_module_define": fn(
        *const c_char, *const *const c_char, *const Tensor, usize,
        *const *const c_char, *const *const Module, usize, *mut *mut Module) -> i32;
    save = b"gtorch_module_save": fn(*const Module, *const c_char) -> i32;
    freeze = b"gtorch_module_freeze": fn(*mut Module) -> i32;
    optimise = b"gtorch_module_optimise": fn(*mut Module) -> i32;
    signature = b"gtorch_module_signature": fn(*const Module, *mut Signature) -> i32;
    input = b"gtorch_module_input": fn(
        *const Module, usize, *mut i32, *mut c_char, usize) -> i32;
    run = b"gtorch_module_run": fn(
        *const Module, *const Tensor, usize, *const Tensor, usize, u32, *mut Report) -> i32;
    probe = b"gtorch_module_probe": fn(
        *const Module, *const Tensor, usize, *mut Tensor, usize, *mut usize) -> i32;
    free = b"gtorch_module_free": fn(*mut Module);
} }

/// `GTORCH_CUDA_ABI`.
pub const CUDA_ABI: i32 = 4;

/// `gtorch_precision`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Precision {
    pub dtype: i32,
    pub tf32: i32,
    pub channels_last: i32,
}

const _: () = assert!(size_of::<Precision>() == 12);

/// `gtorch_graph`: never looked into.
#[repr(C)]
pub struct Graph {
    _opaque: [u8; 0],
}

functions! { CudaFunctions {
    error_text = b"gtorch_cuda_error_text": fn() -> *const c_char;
    open = b"gtorch_cuda_open": fn(i32) -> i32;
    place = b"gtorch_cuda_place": fn(
        *const Module, i32, *const Precision, *mut *mut Module) -> i32;
    run = b"gtorch_cuda_run": fn(
        *const Module, i32, *mut c_void, *const Precision,
        *const Tensor, usize, *const Tensor, usize) -> i32;
    pool = b"gtorch_cuda_pool": fn(*mut u64) -> i32;
    capture = b"gtorch_cuda_capture": fn(
        *const Module, i32, *mut c_void, *const u64, *const Precision,
        *const Tensor, usize, *const Tensor, usize, *mut *mut Graph) -> i32;
    graph_raw = b"gtorch_cuda_graph_raw": fn(*mut Graph) -> *mut c_void;
    graph_free = b"gtorch_cuda_graph_free": fn(*mut Graph);
    forget = b"gtorch_cuda_forget": fn(*mut c_void) -> i32;
    memory = b"gtorch_cuda_memory": fn(i32, *mut u64, *mut u64) -> i32;
    trim = b"gtorch_cuda_trim": fn() -> i32;
} }
