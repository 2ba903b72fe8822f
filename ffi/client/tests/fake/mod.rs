//! The daemon's end of a session, driven by hand by a test or served by a thread. It stands on
//! gpulet-abi alone, so it knows of the client only what the ABI says.
#![allow(dead_code, reason = "each test uses its part")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytemuck::Zeroable;
use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{
    Completion, Goodbye, Hello, ModelQuery, ModelSpec, SUBMIT_CANCEL, Submission, Welcome,
    get_text, put_text,
};
use gpulet_abi::region::{Geometry, MappedRing, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use gpulet_abi::tensor::SlotLayout;
use gpulet_abi::version;
use gpulet_client::{Error, Options, Session};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// One f32 tensor of 4 a row in and out, up to 8 rows.
pub const ECHO: u32 = 1;
/// No output: an answer is all there is.
pub const NULL: u32 = 2;
const SLOT_BYTES: u64 = 1024;

/// A socket that is listened to.
pub struct Listener {
    fd: OwnedFd,
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

/// The daemon's end of one session.
pub struct End {
    pub socket: Option<OwnedFd>,
    pub region: Region,
    pub submissions: Consumer<MappedRing, Submission>,
    pub completions: Producer<MappedRing, Completion>,
    pub submission_bell: Doorbell,
    pub completion_bell: Doorbell,
    /// Completions that rang, as the client slept.
    pub rings: u32,
}

impl Listener {
    pub fn new() -> Listener {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpuletd.sock");
        let fd = frame::listen(&path, 16).unwrap();
        Listener { fd, path, _folder: folder }
    }

    /// The next client's socket and hello.
    pub fn accept(&self) -> (OwnedFd, Hello) {
        readable(&self.fd, -1);
        let socket = rustix::net::accept(&self.fd).unwrap();
        let mut packet = [0; 4096];
        let received = frame::receive(&socket, &mut packet).unwrap();
        (socket, Hello::parse(&packet[..received.bytes]).unwrap())
    }

    /// Opens a session, with `answer` being given the client's socket and hello meanwhile.
    pub fn open_with<T: Send>(
        &self,
        options: &Options,
        answer: impl FnOnce(OwnedFd, Hello) -> T + Send,
    ) -> (Result<Session, Error>, T) {
        let options = Options { socket: Some(self.path.clone()), ..options.clone() };
        std::thread::scope(|scope| {
            let daemon = scope.spawn(|| {
                let (socket, hello) = self.accept();
                answer(socket, hello)
            });
            (Session::open(&options), daemon.join().unwrap())
        })
    }

    /// Opens a session and both models.
    pub fn session(&self, options: &Options) -> (Session, End) {
        let (session, mut end) = self.open_with(options, |socket, hello| welcome(socket, &hello));
        let mut session = session.unwrap();
        end.while_serving(|| {
            session.model_open("echo").unwrap();
            session.model_open("null").unwrap();
        });
        (session, end)
    }
}

/// A session of `slot_count` slots against a fresh daemon.
pub fn session(slot_count: u32) -> (Session, End) {
    Listener::new().session(&Options::default().slots(slot_count))
}

/// Grants what was wished for.
pub fn welcome(socket: OwnedFd, hello: &Hello) -> End {
    let slot_bytes = if hello.slot_bytes == 0 { SLOT_BYTES } else { hello.slot_bytes };
    let geometry = Geometry::new(slot_bytes, hello.slot_count).unwrap();
    let (region, memory) = Region::create(geometry).unwrap();
    let (submission_bell, completion_bell) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let (first, second) =
        (submission_bell.try_clone().unwrap(), completion_bell.try_clone().unwrap());
    let fds = [memory.as_fd(), first.as_fd(), second.as_fd()];
    frame::send(&socket, bytemuck::bytes_of(&welcome_frame(&geometry)), &fds).unwrap();
    End {
        socket: Some(socket),
        submissions: region.submission_consumer(),
        completions: region.completion_producer(),
        region: Region::attach(memory, geometry.region_bytes).unwrap(),
        submission_bell,
        completion_bell,
        rings: 0,
    }
}

pub fn welcome_frame(geometry: &Geometry) -> Welcome {
    let mut frame = Welcome::blank();
    (frame.version, frame.features) = (version::VERSION, version::FEATURES);
    (frame.session, frame.region_bytes) = (42, geometry.region_bytes);
    frame
}

pub fn refusal(status: i32, text: &str) -> Welcome {
    let mut frame = Welcome { status, version: version::VERSION, ..Welcome::blank() };
    put_text(&mut frame.text, text);
    frame
}

/// What the daemon says to a query for `name`.
pub fn spec(name: &str) -> ModelSpec {
    let mut spec = ModelSpec::blank();
    put_text(&mut spec.name, name);
    (spec.max_batch, spec.slo_ns) = (8, 50_000_000);
    match name {
        "echo" => (spec.model, spec.input_count, spec.output_count) = (ECHO, 1, 1),
        "null" => (spec.model, spec.input_count) = (NULL, 1),
        _ => {
            spec.status = Status::NoSuchModel as i32;
            put_text(&mut spec.text, "no model.toml of that name");
        }
    }
    for tensor in [&mut spec.inputs[0], &mut spec.outputs[0]] {
        put_text(&mut tensor.name, "x");
        (tensor.dtype, tensor.rank, tensor.row_bytes) = (1, 2, 16);
        (tensor.dims[0], tensor.dims[1]) = (-1, 4);
    }
    spec
}

pub fn answer_to(entry: &Submission, status: Status) -> Completion {
    let &Submission { slot, generation, rows, model, user_data, .. } = entry;
    let status = status as i32;
    Completion { status, slot, generation, rows, model, user_data, ..Completion::zeroed() }
}

impl End {
    /// Everything submitted so far.
    pub fn take(&mut self) -> Vec<Submission> {
        self.submission_bell.clear();
        let mut taken = Vec::new();
        while let Some(entry) = self.submissions.pop().unwrap() {
            assert_eq!(entry.broken_rule(self.region.geometry().slot_count), None);
            taken.push(entry);
        }
        self.submissions.release();
        taken
    }

    /// Posts one completion as it is.
    pub fn post(&mut self, answer: &Completion) {
        self.completions.push(answer).unwrap();
        if self.completions.commit() {
            self.rings += 1;
            self.completion_bell.signal().unwrap();
        }
    }

    /// Does what the model does, and posts its answer.
    pub fn answer(&mut self, entry: &Submission) {
        if entry.model == ECHO {
            let layout = SlotLayout::of_spec(&spec("echo"), entry.rows).unwrap();
            let (input, output) = (layout.inputs()[0], layout.outputs()[0]);
            let slot = self.region.slot(entry.slot).as_ptr();
            // SAFETY: both lie in the slot, which is ours until the completion is posted.
            unsafe {
                let from = slot.add(input.offset as usize);
                let to = slot.add(output.offset as usize);
                std::ptr::copy_nonoverlapping(from, to, input.bytes as usize);
            }
        }
        self.post(&answer_to(entry, Status::Ok));
    }

    /// Fails a request with an executor's text.
    pub fn fail(&mut self, entry: &Submission, text: &str) {
        let layout = SlotLayout::of_spec(&spec("echo"), entry.rows).unwrap();
        let offset = layout.outputs()[0].offset as usize;
        let room = self.region.geometry().slot_bytes as usize - offset;
        let cut = text.len().min(room);
        // SAFETY: inside the slot, which is ours until the completion is posted.
        unsafe {
            let to = self.region.slot(entry.slot).as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(text.as_ptr(), to, cut);
            if cut < room {
                to.add(cut).write(0);
            }
        }
        self.post(&answer_to(entry, Status::ModelError));
    }

    /// Answers what is there: requests, cancellations (always too late), model queries. Whether the
    /// client still lives.
    pub fn turn(&mut self) -> bool {
        for entry in self.take() {
            let now_ns = gpulet_client::clock::now_ns();
            if entry.kind == SUBMIT_CANCEL {
                continue;
            }
            if entry.deadline_ns != 0 && entry.deadline_ns < now_ns {
                self.post(&answer_to(&entry, Status::DeadlineHopeless));
            } else {
                self.answer(&entry);
            }
        }
        let Some(socket) = &self.socket else { return true };
        let mut packet = [0; 4096];
        match receive_now(socket, &mut packet) {
            Some(0) => false,
            Some(bytes) => {
                let query = ModelQuery::parse(&packet[..bytes]).unwrap();
                let spec = spec(get_text(&query.name).unwrap());
                frame::send(socket, bytemuck::bytes_of(&spec), &[]).is_ok()
            }
            None => true,
        }
    }

    /// Sleeps until the client did something; for a while at most.
    pub fn doze(&mut self) {
        if !self.submissions.prepare_sleep().unwrap() {
            return;
        }
        let tick = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let mut fds = vec![PollFd::new(&self.submission_bell, PollFlags::IN)];
        fds.extend(self.socket.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
        let _ = poll(&mut fds, Some(&tick));
        self.submissions.awake();
    }

    /// Runs `client` while another thread serves.
    pub fn while_serving<T>(&mut self, client: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) && self.turn() {
                    self.doze();
                }
            });
            // Dropped on a panic too, or the scope would wait for ever.
            let _stop = Stop(&done);
            client()
        })
    }

    pub fn say_goodbye(&mut self, status: Status, text: &str) {
        self.region.end(status);
        let mut frame = Goodbye { status: status as i32, ..Goodbye::blank() };
        put_text(&mut frame.text, text);
        frame::send(self.socket.as_ref().unwrap(), bytemuck::bytes_of(&frame), &[]).unwrap();
    }

    pub fn hang_up(&mut self) {
        self.socket = None;
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn readable(fd: &OwnedFd, timeout_ms: i64) -> bool {
    let timeout = Timespec { tv_sec: timeout_ms / 1000, tv_nsec: timeout_ms % 1000 * 1_000_000 };
    let timeout = if timeout_ms < 0 { None } else { Some(&timeout) };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout).unwrap() > 0
}

/// Serves every client that comes, until dropped.
pub struct Service {
    pub path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub fn start() -> Service {
        let listener = Listener::new();
        let path = listener.path.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                if readable(&listener.fd, 5) {
                    let (socket, hello) = listener.accept();
                    let mut end = welcome(socket, &hello);
                    let stopped = Arc::clone(&stopped);
                    std::thread::spawn(move || {
                        while !stopped.load(Ordering::Acquire) && end.turn() {
                            end.doze();
                        }
                    });
                }
            }
        });
        Service { path, stop, thread: Some(thread) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `frame::receive` on a socket that blocks: what is there now. Zero bytes: the client hung up.
fn receive_now(socket: &OwnedFd, packet: &mut [u8]) -> Option<usize> {
    if !readable(socket, 0) {
        return None;
    }
    match frame::receive(socket, packet) {
        Ok(received) => Some(received.bytes),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(_) => Some(0),
    }
}
