//! A session: one connection to a daemon and one region, used by one thread at a time.
//!
//! The request path (claim, tensors, submit, reap, release) makes no system call but the one that
//! wakes a sleeping daemon, and allocates nothing. It is bounded by the slots of the session.

mod exchange;
mod slots;
mod wait;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::layout::{Completion, ModelSpec, NAME_BYTES, Submission, get_text};
use gpulet_abi::region::{MappedRing, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use rustix::event::epoll;

use crate::catalog::Catalog;
use crate::clock;
use crate::control::{self, Control, Word};
use crate::error::Error;
use crate::fork::Birthmark;
use crate::options::{Options, Wait};
use slots::Slots;

pub use exchange::Submit;
pub use slots::{Element, Request, Tensor};

/// What the daemon granted. `#[repr(C)]`: it is `struct gpulet_grant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SessionInfo {
    /// The number by which the daemon's log names this session.
    pub session: u64,
    /// Bytes for all tensors of one request.
    pub slot_bytes: u64,
    /// Requests that can be claimed or in flight at a time.
    pub slot_count: u32,
    /// The daemon's ABI version.
    pub abi_version: u32,
    /// Features of both sides.
    pub features: u64,
}

/// One connection with one region. Closed by dropping it; in the child of a fork that leaves the
/// parent's session alone.
#[derive(Debug)]
pub struct Session {
    submissions: Producer<MappedRing, Submission>,
    completions: Consumer<MappedRing, Completion>,
    slots: Slots,
    models: Catalog,
    birthmark: Birthmark,
    region: Region,
    wait: Wait,
    /// Why the session is over; the first reason stays.
    end: Option<End>,
    /// The daemon wrote into the completion ring what the ABI forbids, so it is read no more.
    deaf: bool,
    submission_bell: Doorbell,
    completion_bell: Doorbell,
    control: Control,
    /// An epoll descriptor over the completion doorbell and the control socket.
    both: OwnedFd,
    query_timeout_ns: u64,
    info: SessionInfo,
}

#[derive(Debug)]
struct End {
    status: Status,
    text: Box<str>,
    /// Whether the socket is done with. Before, only the word in the region is known, and the goodbye
    /// that says more may still be under way.
    heard: bool,
}

impl Session {
    /// Connects. Blocks for `connect_timeout_ns` at most.
    ///
    /// # Errors
    /// A status of decade 2x, [`Status::Timeout`], [`Status::InvalidArgument`] or
    /// [`Status::OutOfMemory`].
    pub fn open(options: &Options) -> Result<Session, Error> {
        let path = options.checked()?;
        let deadline_ns = clock::after(options.connect_timeout_ns);
        let granted = control::open(&path, options.slot_bytes, options.slot_count, deadline_ns)?;
        let both = epoll_of(&granted.completion_bell, &granted.control)
            .map_err(|errno| Error::Kernel { what: "epoll", source: errno.into() })?;
        let geometry = *granted.region.geometry();
        Ok(Session {
            submissions: granted.region.submission_producer(),
            completions: granted.region.completion_consumer(),
            slots: Slots::new(geometry.slot_count),
            models: Catalog::default(),
            birthmark: Birthmark::new(),
            region: granted.region,
            wait: options.wait,
            end: None,
            deaf: false,
            submission_bell: granted.submission_bell,
            completion_bell: granted.completion_bell,
            control: granted.control,
            both,
            query_timeout_ns: options.connect_timeout_ns,
            info: SessionInfo {
                session: granted.session,
                slot_bytes: geometry.slot_bytes,
                slot_count: geometry.slot_count,
                abi_version: granted.version,
                features: granted.features,
            },
        })
    }

    /// What the daemon granted.
    pub fn info(&self) -> SessionInfo {
        self.info
    }

    /// Looks at the socket: whether the session lives.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Forked`].
    pub fn check(&mut self) -> Result<(), Error> {
        self.same_process()?;
        self.look_at_socket();
        self.usable()
    }

    /// Asks for a model by name. Blocks for a round trip on the socket, at most for the session's
    /// `connect_timeout_ns`.
    ///
    /// # Errors
    /// A status of decade 3x, [`Status::Timeout`], [`Status::InvalidArgument`], [`Error::Ended`],
    /// [`Error::Forked`].
    pub fn model_open(&mut self, name: &str) -> Result<ModelSpec, Error> {
        self.usable()?;
        if name.is_empty() || name.len() >= NAME_BYTES || name.contains('\0') {
            return Err(Error::ModelName(name.len()));
        }
        let deadline_ns = clock::after(self.query_timeout_ns);
        let spec = match self.control.query(name, deadline_ns)? {
            Word::Spec(spec) => spec,
            Word::End(status, text) => {
                self.finish(status, text);
                return Err(self.over());
            }
            Word::Silence => return Err(Error::Timeout("model query")),
        };
        let text = get_text(&spec.text).unwrap_or_default();
        match Status::from_number(spec.status) {
            Some(Status::Ok) => {}
            Some(status) => return Err(control::refusal(status, name, text)),
            // A newer daemon may have a reason that this library does not know.
            None => return Err(control::refusal(Status::ModelFailed, name, text)),
        }
        if let Err(rule) = self.models.put(&spec, self.info.slot_bytes) {
            self.finish_broken(rule);
            return Err(self.over());
        }
        Ok(*spec)
    }

    /// A descriptor for poll, epoll or select: readable when completions came after
    /// [`arm`](Session::arm), and when the session ended.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.same_process()?;
        Ok(self.both.as_fd())
    }

    /// Ends the session for a defect of this library.
    pub(crate) fn poison(&mut self) {
        self.deaf = true;
        self.finish(Status::Internal, "a call into it failed by a defect of gpulet".into());
    }

    #[inline]
    fn same_process(&self) -> Result<(), Error> {
        if self.birthmark.is_here() { Ok(()) } else { Err(Error::Forked) }
    }

    /// Whether the session can still be given anything, as far as memory tells.
    #[inline]
    fn usable(&mut self) -> Result<(), Error> {
        self.same_process()?;
        if self.lives() { Ok(()) } else { Err(self.over()) }
    }

    #[inline]
    fn lives(&self) -> bool {
        self.end.is_none() && self.region.ended() == Status::Ok
    }

    /// Why the session is over. To be called only when it is.
    #[cold]
    fn over(&mut self) -> Error {
        self.look_at_socket();
        let status = match self.region.ended() {
            Status::Ok => Status::DaemonGone,
            status => status,
        };
        let end = End { status, text: status.text().into(), heard: false };
        let End { status, text, .. } = self.end.get_or_insert(end);
        Error::Ended { status: *status, text: text.clone() }
    }

    /// Takes what the daemon says on the socket, without waiting.
    fn look_at_socket(&mut self) {
        if !self.heard()
            && let Word::End(status, text) = self.control.news()
        {
            self.finish(status, text);
        }
    }

    fn heard(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.heard)
    }

    fn finish(&mut self, status: Status, text: Box<str>) {
        match &mut self.end {
            None => self.end = Some(End { status, text, heard: true }),
            Some(end) if !end.heard => {
                end.heard = true;
                if end.status == status {
                    end.text = text;
                }
            }
            Some(_) => return,
        }
        // Whoever polls the descriptor finds it readable from now on. In the child of a fork it is
        // the parent's socket too.
        if self.birthmark.is_here() {
            self.control.hang_up();
        }
    }

    #[cold]
    fn finish_broken(&mut self, rule: &str) {
        if let Word::End(status, text) = control::broken(rule) {
            self.finish(status, text);
        }
    }
}

fn epoll_of(bell: &Doorbell, control: &Control) -> rustix::io::Result<OwnedFd> {
    let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(0);
    epoll::add(&both, bell, data, epoll::EventFlags::IN)?;
    epoll::add(&both, control, data, epoll::EventFlags::IN | epoll::EventFlags::RDHUP)?;
    Ok(both)
}
