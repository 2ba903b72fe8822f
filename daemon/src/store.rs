//! Whole files into memory, through io_uring: several large reads are under way at a time, so a
//! model comes as fast as the disk gives it, and without a copy of it in a growing vector.
//!
//! Where the kernel has no io_uring for us (old, or forbidden by a container), files are read with
//! plain reads; the contents are the same.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Once;

use io_uring::{IoUring, opcode, types};
use memmap2::MmapMut;
use rustix::io::Errno;

/// Reads under way at a time.
const DEPTH: usize = 8;
/// Bytes of one read.
const CHUNK_BYTES: usize = 1 << 20;

/// Why a file was not read. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("{}: not a regular file", path.display())]
    NotFile {
        /// What it is not.
        path: PathBuf,
    },
    /// More than the caller takes.
    #[error("{}: {bytes} bytes, at most {limit_bytes} are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Somebody wrote it at the same time.
    #[error("{}: was changed while it was read; replace a file by renaming another over it",
        path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// The bytes of a file, in page-aligned memory of their own.
#[derive(Debug)]
pub struct Contents {
    memory: MmapMut,
    bytes: usize,
}

impl Deref for Contents {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }
}

/// Reads all of `path`, which may have at most `limit_bytes`.
///
/// # Errors
/// [`StoreError`].
pub fn read(path: &Path, limit_bytes: u64) -> Result<Contents, StoreError> {
    read_by(Method::Ring, path, limit_bytes, || {})
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// io_uring, and plain reads where there is none.
    Ring,
    /// Plain reads.
    #[cfg_attr(not(test), allow(dead_code, reason = "forced by tests only"))]
    Plain,
}

/// `opened` is called between opening and reading.
fn read_by(
    method: Method,
    path: &Path,
    limit_bytes: u64,
    opened: impl FnOnce(),
) -> Result<Contents, StoreError> {
    let failed = |source| StoreError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    if !before.is_file() {
        return Err(StoreError::NotFile { path: path.to_owned() });
    }
    let bytes = before.len();
    if bytes > limit_bytes {
        return Err(StoreError::TooLarge { path: path.to_owned(), bytes, limit_bytes });
    }
    let bytes = usize::try_from(bytes).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
    opened();
    // A mapping has at least one byte, a file need not.
    let mut memory = MmapMut::map_anon(bytes.max(1)).map_err(failed)?;
    let ring = if method == Method::Ring && bytes > 0 { open_ring() } else { None };
    let plainly = |memory: &mut MmapMut| fill_plainly(&file, &mut memory[..bytes]);
    let outcome = match ring {
        Some(ring) => match (Ring { ring, file: &file }).fill(&mut memory, bytes) {
            // An old kernel knows rings but not this kind of read: plain reads have the last word.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => plainly(&mut memory),
            outcome => outcome,
        },
        None => plainly(&mut memory),
    };
    let changed = || StoreError::Changed { path: path.to_owned() };
    match outcome {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
        Err(error) => return Err(failed(error)),
    }
    let after = file.metadata().map_err(failed)?;
    let same = after.len() == before.len() && after.modified().ok() == before.modified().ok();
    if same { Ok(Contents { memory, bytes }) } else { Err(changed()) }
}

fn open_ring() -> Option<IoUring> {
    static SAID: Once = Once::new();
    match IoUring::new(DEPTH as u32) {
        Ok(ring) => Some(ring),
        Err(error) => {
            SAID.call_once(|| tracing::debug!("no io_uring ({error}): files are read plainly"));
            None
        }
    }
}

fn fill_plainly(file: &File, mut memory: &mut [u8]) -> io::Result<()> {
    let mut offset = 0;
    while !memory.is_empty() {
        match rustix::io::pread(file.as_fd(), &mut *memory, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                memory = &mut memory[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// A stretch of the file that is being read.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    offset: usize,
    end: usize,
}

struct Ring<'a> {
    ring: IoUring,
    file: &'a File,
}

impl Ring<'_> {
    /// Reads the first `bytes` bytes of the file. When this returns, the kernel writes no more.
    fn fill(mut self, memory: &mut MmapMut, bytes: usize) -> io::Result<()> {
        let mut chunks = [Chunk { offset: 0, end: 0 }; DEPTH];
        let (mut next, mut in_flight) = (0, 0usize);
        for (index, chunk) in chunks.iter_mut().enumerate() {
            if take_chunk(chunk, &mut next, bytes) {
                self.submit(memory, index, *chunk);
                in_flight += 1;
            }
        }
        let mut outcome = Ok(());
        while in_flight > 0 {
            self.wait();
            while let Some(completion) = self.next_completion() {
                in_flight -= 1;
                let index = completion.user_data() as usize;
                let chunk = &mut chunks[index];
                match advance(chunk, completion.result()) {
                    Ok(()) if outcome.is_err() => continue,
                    Ok(()) if chunk.offset < chunk.end => {}
                    Ok(()) if take_chunk(chunk, &mut next, bytes) => {}
                    Ok(()) => continue,
                    Err(error) => {
                        outcome = Err(error);
                        continue;
                    }
                }
                let chunk = *chunk;
                self.submit(memory, index, chunk);
                in_flight += 1;
            }
        }
        outcome
    }

    fn next_completion(&mut self) -> Option<io_uring::cqueue::Entry> {
        self.ring.completion().next()
    }

    fn submit(&mut self, memory: &mut MmapMut, index: usize, chunk: Chunk) {
        let target = &mut memory[chunk.offset..chunk.end];
        let read = opcode::Read::new(
            types::Fd(self.file.as_raw_fd()),
            target.as_mut_ptr(),
            target.len() as u32,
        );
        let entry = read.offset(chunk.offset as u64).build().user_data(index as u64);
        // SAFETY: file and memory outlive the read, as `fill` waits for every one before it
        // returns; chunks do not overlap, and nobody looks at their memory before that.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("one entry a chunk, and the queue has room for every chunk");
    }

    /// Submits and waits for at least one read.
    fn wait(&mut self) {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return,
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => {
                    // The kernel may still write to the memory, so nobody may go on and free it.
                    tracing::error!("io_uring was lost with reads under way: {error}");
                    std::process::abort();
                }
            }
        }
    }
}

fn take_chunk(chunk: &mut Chunk, next: &mut usize, bytes: usize) -> bool {
    if *next == bytes {
        return false;
    }
    *chunk = Chunk { offset: *next, end: bytes.min(*next + CHUNK_BYTES) };
    *next = chunk.end;
    true
}

fn advance(chunk: &mut Chunk, result: i32) -> io::Result<()> {
    match usize::try_from(result) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            chunk.offset += count.min(chunk.end - chunk.offset);
            Ok(())
        }
        Err(_) => {
            let error = io::Error::from_raw_os_error(-result);
            if is_passing(&error) { Ok(()) } else { Err(error) }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INTR | Errno::AGAIN | Errno::BUSY))
}

#[cfg(test)]
mod tests;
