//! A client of its own making: the ABI without the library, so that rules can be broken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use bytemuck::{Zeroable, bytes_of};
use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{
    Completion, Goodbye, Hello, ModelQuery, ModelSpec, SUBMIT_CANCEL, SUBMIT_INFER, Submission,
    Welcome, get_text, put_text,
};
use gpulet_abi::region::{MappedRing, Mapping, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use gpulet_abi::version;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::PATIENCE;

/// A connection without a session.
pub struct Connection {
    pub socket: OwnedFd,
}

/// A hello that is in order.
pub fn hello(slot_bytes: u64, slot_count: u32) -> Hello {
    Hello {
        magic: version::MAGIC,
        version: version::VERSION,
        features: version::FEATURES,
        slot_bytes,
        slot_count,
        ..Hello::blank()
    }
}

impl Connection {
    pub fn open(path: &Path) -> Connection {
        Connection { socket: frame::connect(path).unwrap() }
    }

    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        frame::send(&self.socket, packet, &[])
    }

    pub fn send_with(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        frame::send(&self.socket, packet, descriptors)
    }

    /// The next packet; `None` if the daemon hung up.
    pub fn hear(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "the daemon says nothing");
        let mut packet = vec![0; 4096];
        match frame::receive(&self.socket, &mut packet) {
            Ok(received) if received.bytes > 0 => {
                packet.truncate(received.bytes);
                Some((packet, received.descriptors))
            }
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for the hang-up; the goodbye before it, if one came.
    pub fn hear_the_end(&self) -> Option<(Status, String)> {
        let mut goodbye = None;
        while let Some((packet, _)) = self.hear() {
            if let Some(frame) = Goodbye::parse(&packet) {
                let text = get_text(&frame.text).unwrap().to_owned();
                goodbye = Some((Status::from_number(frame.status).unwrap(), text));
            }
        }
        goodbye
    }

    /// What the daemon says to a hello, and with which descriptors.
    pub fn greet(&self, hello: &Hello) -> Option<(Welcome, Vec<OwnedFd>)> {
        self.send(bytes_of(hello)).ok()?;
        let (packet, descriptors) = self.hear()?;
        Some((Welcome::parse(&packet).unwrap(), descriptors))
    }

    /// The status and the text with which a hello is refused.
    pub fn refusal(&self, hello: &Hello) -> (Status, String) {
        let (welcome, descriptors) = self.greet(hello).unwrap();
        assert!(descriptors.is_empty());
        let text = get_text(&welcome.text).unwrap().to_owned();
        (Status::from_number(welcome.status).unwrap(), text)
    }
}

/// A session whose rings and memory are in the hands of the test.
pub struct RawSession {
    pub connection: Connection,
    pub session: u64,
    pub region: Region,
    /// All of the region, to be written over.
    pub memory: Mapping,
    pub submissions: Producer<MappedRing, Submission>,
    pub completions: Consumer<MappedRing, Completion>,
    pub submission_bell: Doorbell,
    pub completion_bell: Doorbell,
}

impl RawSession {
    pub fn open(path: &Path, slot_bytes: u64, slot_count: u32) -> RawSession {
        RawSession::try_open(path, slot_bytes, slot_count).unwrap()
    }

    /// `None` if the daemon refuses or hangs up.
    pub fn try_open(path: &Path, slot_bytes: u64, slot_count: u32) -> Option<RawSession> {
        let connection = Connection { socket: frame::connect(path).ok()? };
        let (welcome, descriptors) = connection.greet(&hello(slot_bytes, slot_count))?;
        let [region, submission_bell, completion_bell] =
            <[OwnedFd; 3]>::try_from(descriptors).ok()?;
        let bytes = welcome.region_bytes;
        let memory = Mapping::attach(region.try_clone().unwrap(), bytes, bytes).unwrap();
        let region = Region::attach(region, bytes).unwrap();
        Some(RawSession {
            connection,
            session: welcome.session,
            submissions: region.submission_producer(),
            completions: region.completion_consumer(),
            region,
            memory,
            submission_bell: submission_bell.into(),
            completion_bell: completion_bell.into(),
        })
    }

    pub fn query(&self, name: &str) -> ModelSpec {
        let mut query = ModelQuery::blank();
        put_text(&mut query.name, name);
        self.connection.send(bytes_of(&query)).unwrap();
        ModelSpec::parse(&self.connection.hear().unwrap().0).unwrap()
    }

    /// The number of a model that is there.
    pub fn model(&self, name: &str) -> u32 {
        let spec = self.query(name);
        assert_eq!(spec.status, 0, "{:?}", get_text(&spec.text));
        spec.model
    }

    /// A request as an honest client would send it.
    pub fn infer(model: u32, slot: u32, rows: u32) -> Submission {
        Submission {
            kind: SUBMIT_INFER,
            model,
            slot,
            generation: 1,
            rows,
            user_data: u64::from(slot),
            ..Submission::zeroed()
        }
    }

    /// The cancellation of [`infer`](Self::infer).
    pub fn cancellation(slot: u32) -> Submission {
        Submission { kind: SUBMIT_CANCEL, slot, generation: 1, ..Submission::zeroed() }
    }

    /// Sends entries, all at once.
    pub fn send(&mut self, entries: &[Submission]) {
        for entry in entries {
            self.submissions.push(entry).unwrap();
        }
        if self.submissions.commit() {
            self.submission_bell.signal().unwrap();
        }
    }

    /// The next answer, which must come.
    pub fn next(&mut self) -> Completion {
        let begin = Instant::now();
        loop {
            if let Some(answer) = self.completions.pop().unwrap() {
                self.completions.release();
                return answer;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Sends one entry; the status it is answered with.
    pub fn ask(&mut self, entry: Submission) -> Status {
        self.send(&[entry]);
        let answer = self.next();
        assert_eq!((answer.slot, answer.generation), (entry.slot, entry.generation));
        assert_eq!((answer.rows, answer.model), (entry.rows, entry.model));
        assert_eq!(answer.user_data, entry.user_data);
        Status::from_number(answer.status).unwrap()
    }

    /// Copies bytes into a slot.
    pub fn write(&self, slot: u32, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.region.geometry().slot_bytes);
        // SAFETY: inside the slot, which is mapped.
        unsafe {
            let target = self.region.slot(slot).as_ptr().add(offset as usize);
            target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
