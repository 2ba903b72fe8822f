//! iceoryx2's request-response, 64 bytes each way, both sides polling.
//!
//! As its own benchmark does it, neither side writes a payload: what is measured is the transport.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use iceoryx2::port::client::Client;
use iceoryx2::port::server::Server;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::request_response::PortFactory;

use super::{MESSAGE_BYTES, Means};
use crate::error::Error;
use crate::far::Invitation;

type Message = [u8; MESSAGE_BYTES];
type Near = Client<ipc::Service, Message, (), Message, ()>;
type Far = Server<ipc::Service, Message, (), Message, ()>;
type Factory = PortFactory<ipc::Service, Message, (), Message, ()>;

const CONNECT_MAX: Duration = Duration::from_secs(5);
const STOP: u8 = 0xff;

/// The near side.
#[derive(Debug)]
pub struct Service {
    client: Near,
    /// Only kept alive: iceoryx2 takes a service down with its last handle.
    _factory: Factory,
}

fn failed<E: std::fmt::Debug>(error: E) -> Error {
    Error::failed("iceoryx2", format!("{error:?}"))
}

/// Opens the service that is called after the near side's process.
fn open(near: u32) -> Result<Factory, Error> {
    let name = format!("gpulet-bench/{near}");
    set_log_level(LogLevel::Error);
    NodeBuilder::new()
        .create::<ipc::Service>()
        .map_err(failed)?
        .service_builder(&name.as_str().try_into().map_err(failed)?)
        .request_response::<Message, Message>()
        .max_clients(1)
        .max_servers(1)
        .open_or_create()
        .map_err(failed)
}

impl Service {
    /// Sends one request and polls for its answer; `false` if nobody is there to take it.
    fn send(&self, mark: Option<u8>) -> Result<bool, Error> {
        let request = self.client.loan_uninit().map_err(failed)?;
        let pending = match mark {
            Some(mark) => request.write_payload([mark; MESSAGE_BYTES]),
            // SAFETY: the payload is bytes of shared memory that the kernel zeroed, and every bit
            // pattern is a value of theirs; not writing it is what iceoryx2's benchmark does.
            None => unsafe { request.assume_init() },
        };
        let pending = pending.send().map_err(failed)?;
        if pending.number_of_server_connections() == 0 {
            return Ok(false);
        }
        while pending.receive().map_err(failed)?.is_none() {}
        Ok(true)
    }
}

impl Means for Service {
    fn open() -> Result<(Service, Vec<OwnedFd>), Error> {
        let factory = open(std::process::id())?;
        let client = factory.client_builder().create().map_err(failed)?;
        Ok((Service { client, _factory: factory }, Vec::new()))
    }

    fn settle(&mut self) -> Result<(), Error> {
        let end = Instant::now() + CONNECT_MAX;
        while !self.send(Some(0))? {
            if Instant::now() >= end {
                return Err(Error::failed("iceoryx2", "the two sides did not connect"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn round_trip(&mut self) -> Result<(), Error> {
        match self.send(None)? {
            true => Ok(()),
            false => Err(Error::failed("iceoryx2", "the server went away")),
        }
    }

    fn stop(self) -> Result<(), Error> {
        self.send(Some(STOP)).map(drop)
    }

    fn answer(_: Invitation, ready: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let factory = open(std::os::unix::process::parent_id())?;
        let server: Far = factory.server_builder().create().map_err(failed)?;
        ready()?;
        loop {
            let Some(request) = server.receive().map_err(failed)? else { continue };
            let last = request[0] == STOP;
            let response = request.loan_uninit().map_err(failed)?;
            // SAFETY: as in `send`.
            let response = unsafe { response.assume_init() };
            response.send().map_err(failed)?;
            if last {
                return Ok(());
            }
        }
    }
}
