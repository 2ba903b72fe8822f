//! The fence between C and Rust: pointers are checked, panics stop here, errors become a status and
//! a text of the thread.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::Once;

use bytemuck::Pod;
use gpulet_abi::status::Status;

use crate::error::Error;
use crate::session::Session;

/// Bytes of an error text, its final NUL counted; longer ones are cut.
const TEXT_BYTES: usize = 512;
/// No version of an option struct will be larger; a program that says so is mistaken.
const OPTIONS_BYTES_MAX: usize = 4096;

struct Last {
    error: Option<Error>,
    text: [u8; TEXT_BYTES],
}

thread_local! {
    static LAST: RefCell<Last> =
        const { RefCell::new(Last { error: None, text: [0; TEXT_BYTES] }) };
    /// Whether this thread is inside a fence, so that its panics are ours.
    static FENCED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one exported function: its status, whatever happens.
#[inline]
pub(crate) fn fence(call: impl FnOnce() -> Result<(), Error>) -> i32 {
    match call_fenced(call) {
        Ok(()) => Status::Ok as i32,
        Err(error) => remember(error),
    }
}

/// Runs one exported function on a session; a panic ends the session.
///
/// # Safety
/// `session` is null or from `gpulet_session_open`, not closed, and in no other thread's hands.
#[inline]
pub(crate) unsafe fn fence_on(
    session: *mut Session,
    call: impl FnOnce(&mut Session) -> Result<(), Error>,
) -> i32 {
    let Some(mut session) = NonNull::new(session) else {
        return remember(Error::argument("session", "is null"));
    };
    // SAFETY: the caller's promise.
    let session = unsafe { session.as_mut() };
    match call_fenced(|| call(session)) {
        Ok(()) => Status::Ok as i32,
        Err(error) => {
            if matches!(error, Error::Defect(_)) {
                session.poison();
            }
            remember(error)
        }
    }
}

#[inline]
fn call_fenced(call: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    panic::catch_unwind(AssertUnwindSafe(|| {
        let _inside = Inside::enter();
        call()
    }))
    .unwrap_or_else(|panic| Err(defect(&*panic)))
}

/// Marks the thread while it lives.
struct Inside;

impl Inside {
    #[inline]
    fn enter() -> Inside {
        FENCED.set(true);
        Inside
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        FENCED.set(false);
    }
}

/// Keeps the library from printing: the default hook would write to the program's stderr. Panics
/// outside of a fence go where they went before.
pub(crate) fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !FENCED.get() {
                before(panic);
            }
        }));
    });
}

#[cold]
fn defect(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::Defect(text.unwrap_or("a panic without a text").into())
}

/// Keeps the error for `gpulet_error_text`; its status. Put into words only when asked for, as some
/// failures are part of a program's normal course.
#[cold]
fn remember(error: Error) -> i32 {
    let status = error.status() as i32;
    // Fails only while the thread's storage is being destroyed, and then nobody can ask.
    let _ = LAST.try_with(|last| last.borrow_mut().error = Some(error));
    status
}

/// The text of this thread's last failure, valid until its next call.
pub(crate) fn last_text() -> *const c_char {
    let text = LAST.try_with(|last| {
        let last = &mut *last.borrow_mut();
        if let Some(error) = last.error.take() {
            put(&mut last.text, &error);
        }
        last.text.as_ptr().cast()
    });
    text.unwrap_or(c"".as_ptr())
}

fn put(field: &mut [u8; TEXT_BYTES], error: &Error) {
    let mut room = &mut field[..TEXT_BYTES - 1];
    // Fails when the room ends, which is how a long text is cut.
    let _ = write!(room, "{error}");
    let mut end = TEXT_BYTES - 1 - room.len();
    if let Err(cut) = std::str::from_utf8(&field[..end]) {
        end = cut.valid_up_to();
    }
    field[end] = 0;
}

/// A pointer that must not be null.
pub(crate) fn some<T>(pointer: *mut T, argument: &'static str) -> Result<NonNull<T>, Error> {
    NonNull::new(pointer).ok_or(Error::argument(argument, "is null"))
}

/// A C string that must not be null, as UTF-8.
///
/// # Safety
/// `text` is null or a NUL-terminated string that outlives `'a`.
pub(crate) unsafe fn text<'a>(
    text: *const c_char,
    argument: &'static str,
) -> Result<&'a CStr, Error> {
    some(text.cast_mut(), argument)?;
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// An option struct of this or another version: what an older program does not know is zero, and
/// what a newer one knows must be, as this library could not honour it.
///
/// # Safety
/// `options` is null, or points to as many readable bytes as its first word says.
pub(crate) unsafe fn options<T: Pod>(
    options: *const T,
    name: &'static str,
    first_version_bytes: usize,
) -> Result<T, Error> {
    let mut mine = T::zeroed();
    if options.is_null() {
        return Ok(mine);
    }
    let source: *const u8 = options.cast();
    // SAFETY: every version starts with this word; read unaligned, so that nothing is asked of a
    // caller but memory.
    let bytes = unsafe { source.cast::<u32>().read_unaligned() };
    let theirs = bytes as usize;
    if !(first_version_bytes..=OPTIONS_BYTES_MAX).contains(&theirs) {
        return Err(Error::StructBytes { name, bytes, expected: size_of::<T>() });
    }
    let known = theirs.min(size_of::<T>());
    // SAFETY: the caller's promise: `theirs` bytes are readable, and `known` is not more.
    let given = unsafe { std::slice::from_raw_parts(source, known) };
    bytemuck::bytes_of_mut(&mut mine)[..known].copy_from_slice(given);
    // SAFETY: the caller's promise: bytes from `known` to `theirs` are readable.
    let newer = unsafe { std::slice::from_raw_parts(source.add(known), theirs - known) };
    if newer.iter().any(|byte| *byte != 0) {
        return Err(Error::argument(
            name,
            "it sets what this version of the library does not know",
        ));
    }
    Ok(mine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        // SAFETY: `last_text` returns a NUL-terminated string of this thread.
        unsafe { CStr::from_ptr(last_text()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_is_a_status_with_a_text() {
        silence_panics();
        let status = fence(|| panic!("{} and {}", "this", "that"));
        assert_eq!(status, Status::Internal as i32);
        assert_eq!(last(), "a defect of gpulet: this and that");
        assert_eq!(last(), "a defect of gpulet: this and that", "asking twice changes nothing");
        assert_eq!(fence(|| Ok(())), 0);
        assert!(!FENCED.get());
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        fence(|| Err(Error::Defect("é".repeat(400).into())));
        assert!(last().len() >= TEXT_BYTES - 3 && last().ends_with('é'));
    }

    #[test]
    fn each_thread_has_its_own_text() {
        fence(|| Err(Error::argument("here", "is one")));
        assert_eq!(std::thread::spawn(last).join().unwrap(), "");
        assert_eq!(last(), "here: is one");
    }

    #[test]
    fn a_null_session_is_named() {
        // SAFETY: null is allowed.
        let status = unsafe { fence_on(std::ptr::null_mut(), |_| Ok(())) };
        assert_eq!((status, last().as_str()), (10, "session: is null"));
    }

    #[test]
    fn options_of_other_versions_are_read() {
        let read = |words: &[u32], first: usize| {
            // SAFETY: no test says more bytes than its words have.
            unsafe { options::<[u32; 3]>(words.as_ptr().cast(), "o", first) }
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(&[12, 2, 3], 8), Ok([12, 2, 3]));
        assert_eq!(read(&[8, 2], 8), Ok([8, 2, 0]));
        assert_eq!(read(&[16, 2, 3, 0], 8), Ok([16, 2, 3]));
        assert!(read(&[16, 2, 3, 1], 8).unwrap_err().contains("does not know"));
        assert!(read(&[4, 2, 3], 8).unwrap_err().contains("struct_bytes"));
        assert!(read(&[0, 2, 3], 8).unwrap_err().contains("struct_bytes"));
        assert!(read(&[4100, 2, 3], 8).unwrap_err().contains("struct_bytes"));
        // SAFETY: null is allowed.
        assert_eq!(unsafe { options::<[u32; 3]>(std::ptr::null(), "o", 8) }.ok(), Some([0; 3]));
    }
}
