//! The exported symbols, in the order of `include/gpulet/client.h`, which is their manual. No logic:
//! arguments are checked and converted, and a session does the rest.
#![allow(clippy::missing_safety_doc, reason = "each function's rules are those of client.h")]
#![allow(missing_docs, reason = "client.h is the documentation")]

use std::ffi::{OsStr, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bytemuck::{Pod, Zeroable};
use gpulet_abi::layout::{Completion, ModelSpec, put_text};
use gpulet_abi::status::Status;
use gpulet_abi::tensor::SlotLayout;
use gpulet_abi::version;

use crate::clock;
use crate::error::Error;
use crate::guard::{self, fence, fence_on};
use crate::options::{
    CONNECT_TIMEOUT_NS_DEFAULT, Options, SLOT_COUNT_DEFAULT, SPIN_NS_DEFAULT, Wait,
};
use crate::session::{Request, Session, SessionInfo, Submit, Tensor};

// ---- The library -------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub extern "C" fn gpulet_abi_version() -> u32 {
    version::VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn gpulet_library_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[unsafe(no_mangle)]
pub extern "C" fn gpulet_status_text(status: i32) -> *const c_char {
    match Status::ALL.iter().position(|known| *known as i32 == status) {
        Some(place) => STATUS_TEXTS[place].as_ptr().cast(),
        None => c"a status that this version of the library does not know".as_ptr(),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn gpulet_error_text() -> *const c_char {
    guard::last_text()
}

#[unsafe(no_mangle)]
pub extern "C" fn gpulet_now_ns() -> u64 {
    clock::now_ns()
}

const STATUS_TEXT_BYTES: usize = 80;

/// The texts of [`Status::ALL`], each with its final NUL.
static STATUS_TEXTS: [[u8; STATUS_TEXT_BYTES]; Status::ALL.len()] = {
    let mut texts = [[0; STATUS_TEXT_BYTES]; Status::ALL.len()];
    let mut status = 0;
    while status < texts.len() {
        let text = Status::ALL[status].text().as_bytes();
        assert!(text.len() < STATUS_TEXT_BYTES);
        let mut byte = 0;
        while byte < text.len() {
            texts[status][byte] = text[byte];
            byte += 1;
        }
        status += 1;
    }
    texts
};

// ---- Sessions ----------------------------------------------------------------------------------

/// `struct gpulet_session_options`; the pointer is an integer here, to be plain data.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SessionOptions {
    pub struct_bytes: u32,
    pub wait: u32,
    pub socket_path: usize,
    pub slot_bytes: u64,
    pub slot_count: u32,
    pub reserved0: u32,
    pub spin_ns: u64,
    pub connect_timeout_ns: u64,
}

/// The size of [`SessionOptions`] in the first version that had it.
const SESSION_OPTIONS_FIRST_BYTES: usize = 48;
const _: () = assert!(size_of::<SessionOptions>() >= SESSION_OPTIONS_FIRST_BYTES);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_session_open(
    options: *const SessionOptions,
    session: *mut *mut Session,
) -> i32 {
    guard::silence_panics();
    fence(|| {
        let out = guard::some(session, "session")?;
        let (name, first) = ("options", SESSION_OPTIONS_FIRST_BYTES);
        // SAFETY: client.h: null, or a struct of struct_bytes bytes.
        let options = unsafe { guard::options(options, name, first) }?;
        // SAFETY: client.h: socket_path is null or a string.
        let options = unsafe { session_options(&options) }?;
        let opened = Box::new(Session::open(&options)?);
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(Box::into_raw(opened)) };
        Ok(())
    })
}

/// # Safety
/// `socket_path` is null or a NUL-terminated string.
unsafe fn session_options(given: &SessionOptions) -> Result<Options, Error> {
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    if given.reserved0 != 0 {
        return Err(Error::argument("options.reserved0", "is not zero"));
    }
    let wait = match given.wait {
        0 => Wait::Block,
        1 => Wait::Spin,
        2 => Wait::Hybrid(or(given.spin_ns, SPIN_NS_DEFAULT)),
        _ => return Err(Error::argument("options.wait", "is no GPULET_WAIT_ number")),
    };
    let socket = match given.socket_path {
        0 => None,
        address => {
            let path = std::ptr::with_exposed_provenance(address);
            // SAFETY: the caller's promise.
            let path = unsafe { guard::text(path, "options.socket_path") }?;
            Some(PathBuf::from(OsStr::from_bytes(path.to_bytes())))
        }
    };
    let slot_count = if given.slot_count == 0 { SLOT_COUNT_DEFAULT } else { given.slot_count };
    let connect_timeout_ns = or(given.connect_timeout_ns, CONNECT_TIMEOUT_NS_DEFAULT);
    Ok(Options { socket, wait, slot_bytes: given.slot_bytes, slot_count, connect_timeout_ns })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_session_close(session: *mut Session) {
    if !session.is_null() {
        fence(|| {
            // SAFETY: client.h: from gpulet_session_open, and not closed before.
            drop(unsafe { Box::from_raw(session) });
            Ok(())
        });
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_session_info(
    session: *const Session,
    grant: *mut SessionInfo,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(grant, "grant")?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(session.info()) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session.cast_mut(), body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_session_check(session: *mut Session) -> i32 {
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, Session::check) }
}

// ---- Models ------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_model_open(
    session: *mut Session,
    name: *const c_char,
    spec: *mut ModelSpec,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(spec, "spec")?;
        // SAFETY: client.h: null or a string.
        let name = unsafe { guard::text(name, "name") }?.to_str();
        let name = name.map_err(|_| Error::argument("name", "is not UTF-8"))?;
        let spec = session.model_open(name)?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(spec) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_model_slot_bytes(
    spec: *const ModelSpec,
    rows: u32,
    bytes: *mut u64,
) -> i32 {
    fence(|| {
        let (spec, out) = (guard::some(spec.cast_mut(), "spec")?, guard::some(bytes, "bytes")?);
        // SAFETY: client.h: not null (checked) and readable.
        let spec = unsafe { spec.as_ref() };
        if !spec.is_consistent() {
            return Err(Error::argument("spec", "is not one that gpulet_model_open filled"));
        }
        if rows == 0 || rows > spec.max_batch {
            return Err(Error::Rows { rows, max_batch: spec.max_batch });
        }
        let layout = SlotLayout::of_spec(spec, rows);
        let layout = layout.ok_or(Error::argument("spec", "its tensors fit no memory"))?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(layout.bytes()) };
        Ok(())
    })
}

// ---- Requests ----------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_request_claim(
    session: *mut Session,
    model: u32,
    rows: u32,
    request: *mut Request,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(request, "request")?;
        let request = session.claim(model, rows)?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(request) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_request_input(
    session: *mut Session,
    request: Request,
    index: u32,
    tensor: *mut Tensor,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(tensor, "tensor")?;
        let tensor = session.input_tensor(request, index)?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(tensor) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_request_output(
    session: *mut Session,
    request: Request,
    index: u32,
    tensor: *mut Tensor,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(tensor, "tensor")?;
        let tensor = session.output_tensor(request, index)?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(tensor) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

/// `struct gpulet_submit_options`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SubmitOptions {
    pub struct_bytes: u32,
    pub flags: u32,
    pub deadline_ns: u64,
    pub user_data: u64,
}

/// The size of [`SubmitOptions`] in the first version that had it.
const SUBMIT_OPTIONS_FIRST_BYTES: usize = 24;
/// `GPULET_SUBMIT_HELD`.
const SUBMIT_HELD: u32 = 1;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_submit(
    session: *mut Session,
    request: Request,
    options: *const SubmitOptions,
) -> i32 {
    let body = |session: &mut Session| {
        let (name, first) = ("options", SUBMIT_OPTIONS_FIRST_BYTES);
        // SAFETY: client.h: null, or a struct of struct_bytes bytes.
        let given = unsafe { guard::options(options, name, first) }?;
        if given.flags & !SUBMIT_HELD != 0 {
            return Err(Error::argument("options.flags", "has a flag that is no GPULET_SUBMIT_"));
        }
        let held = given.flags & SUBMIT_HELD != 0;
        let (deadline_ns, user_data) = (given.deadline_ns, given.user_data);
        session.submit(request, Submit { deadline_ns, user_data, held })
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_flush(session: *mut Session) -> i32 {
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, Session::flush) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_cancel(session: *mut Session, request: Request) -> i32 {
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, |session| session.cancel(request)) }
}

// ---- Answers -----------------------------------------------------------------------------------

/// The caller's array, to be written only.
///
/// # Safety
/// `completions` is null, or leads to `max` writable completions that nobody else uses meanwhile.
unsafe fn answers<'a>(
    completions: *mut Completion,
    max: u32,
) -> Result<&'a mut [MaybeUninit<Completion>], Error> {
    if max == 0 {
        return Ok(&mut []);
    }
    let first = guard::some(completions, "completions")?;
    // SAFETY: the caller's promise; nothing is read, so it may be uninitialised.
    Ok(unsafe { std::slice::from_raw_parts_mut(first.as_ptr().cast(), max as usize) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_reap(
    session: *mut Session,
    completions: *mut Completion,
    max: u32,
    count: *mut u32,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(count, "count")?;
        // SAFETY: client.h: room for `max` completions.
        let taken = session.reap_into(unsafe { answers(completions, max) }?)?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(taken as u32) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_wait(
    session: *mut Session,
    completions: *mut Completion,
    max: u32,
    timeout_ns: u64,
    count: *mut u32,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(count, "count")?;
        // SAFETY: client.h: room for `max` completions.
        let taken = session.wait_into(unsafe { answers(completions, max) }?, timeout_ns)?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(taken as u32) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_session_fd(session: *const Session, fd: *mut c_int) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(fd, "fd")?;
        let fd = session.fd()?.as_raw_fd();
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(fd) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session.cast_mut(), body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_arm(session: *mut Session, ready: *mut u32) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(ready, "ready")?;
        let ready = session.arm()?;
        // SAFETY: client.h: not null (checked) and writable.
        unsafe { out.write(u32::from(ready)) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_request_error(
    session: *mut Session,
    request: Request,
    text: *mut c_char,
    text_bytes: usize,
) -> i32 {
    let body = |session: &mut Session| {
        let out = guard::some(text, "text")?;
        if text_bytes == 0 || text_bytes > isize::MAX as usize {
            return Err(Error::argument("text_bytes", "leaves no room for a final NUL"));
        }
        let said = session.request_error(request)?;
        let mut field = vec![0; (said.len() + 1).min(text_bytes)];
        put_text(&mut field, &said);
        // SAFETY: client.h: `text_bytes` writable bytes; `field` has no more.
        unsafe { std::ptr::copy_nonoverlapping(field.as_ptr(), out.as_ptr().cast(), field.len()) };
        Ok(())
    };
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, body) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpulet_request_release(session: *mut Session, request: Request) -> i32 {
    // SAFETY: client.h: null or an open session, in this thread's hands.
    unsafe { fence_on(session, |session| session.release(request)) }
}
