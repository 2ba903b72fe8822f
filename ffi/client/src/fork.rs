//! Which process a session belongs to. A child made by fork shares the session's descriptors and
//! rings with its parent, and would corrupt them; it has to be noticed on every call, so it must
//! cost no system call.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::{Pid, getpid};

const PAGE_BYTES: usize = 4096;
const PRESENT: u32 = 1;

/// A mark that a fork does not inherit.
#[derive(Debug)]
pub(crate) enum Birthmark {
    /// A page that the kernel hands to a child wiped: the mark is there, or zero.
    Page(NonNull<AtomicU32>),
    /// For kernels before 4.14, which can not wipe pages.
    Number(Pid),
}

// SAFETY: the page is private to this value, and is only accessed atomically.
unsafe impl Send for Birthmark {}

impl Birthmark {
    /// Marks this process.
    pub(crate) fn new() -> Birthmark {
        match Birthmark::page() {
            Ok(page) => Birthmark::Page(page),
            Err(_) => Birthmark::Number(getpid()),
        }
    }

    fn page() -> rustix::io::Result<NonNull<AtomicU32>> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses the address, so nothing that exists is mapped over.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, prot, flags)? };
        // SAFETY: the page was just mapped, and this advice changes only what a child sees.
        if let Err(errno) = unsafe { madvise(start, PAGE_BYTES, Advice::LinuxWipeOnFork) } {
            // SAFETY: the page was just mapped, and nothing points into it.
            let _ = unsafe { munmap(start, PAGE_BYTES) };
            return Err(errno);
        }
        let page: NonNull<AtomicU32> =
            NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        // SAFETY: mapped above, writable, aligned as every page is, and alive.
        unsafe { page.as_ref() }.store(PRESENT, Ordering::Relaxed);
        Ok(page)
    }

    /// Whether this is the process that was marked.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        match self {
            // SAFETY: mapped by `page`, and until this value is dropped.
            Birthmark::Page(page) => unsafe { page.as_ref() }.load(Ordering::Relaxed) == PRESENT,
            Birthmark::Number(pid) => getpid() == *pid,
        }
    }
}

impl Drop for Birthmark {
    fn drop(&mut self) {
        if let Birthmark::Page(page) = self {
            // SAFETY: mapped by `page`, and this is its last use.
            let _ = unsafe { munmap(page.as_ptr().cast(), PAGE_BYTES) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_marks_know_their_own_process() {
        assert!(Birthmark::new().is_here());
        assert!(Birthmark::Number(getpid()).is_here());
        assert!(!Birthmark::Number(Pid::INIT).is_here());
    }
}
