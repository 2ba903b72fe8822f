//! The daemon's state, asked over its socket as `gpuletctl status` asks.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytemuck::bytes_of;
use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{StateQuery, StateReply};
use serde_json::Value;

/// One answer.
#[derive(Clone, Debug)]
pub struct State(pub Value);

impl State {
    /// Asks; `None` if nobody answers.
    pub fn ask(socket: &Path) -> Option<State> {
        let socket = frame::connect(socket).ok()?;
        frame::send(&socket, bytes_of(&StateQuery::blank()), &[]).ok()?;
        let mut packet = [0; 256];
        let received = frame::receive(&socket, &mut packet).ok()?;
        let reply = StateReply::parse(&packet[..received.bytes])?;
        let file = received.descriptors.into_iter().next()?;
        let mut text = String::new();
        // The daemon wrote it through the descriptor it sent, which shares its position with ours.
        let mut file = File::from(file);
        std::io::Seek::rewind(&mut file).ok()?;
        file.read_to_string(&mut text).ok()?;
        assert_eq!(text.len() as u64, reply.json_bytes);
        Some(State(serde_json::from_str(&text).unwrap()))
    }

    pub fn is_ready(&self) -> bool {
        self.0["ready"] == true
    }

    pub fn session_count(&self) -> usize {
        self.0["sessions"].as_array().unwrap().len()
    }

    pub fn session(&self, id: u64) -> Option<&Value> {
        self.0["sessions"].as_array().unwrap().iter().find(|session| session["id"] == id)
    }

    /// The model that is called so and not retired.
    pub fn model(&self, name: &str) -> Option<&Value> {
        let mut models = self.0["models"].as_array().unwrap().iter();
        models.find(|model| model["name"] == name && model["state"] != "retired")
    }

    /// A counter or gauge of a model.
    pub fn count(&self, model: &str, field: &str) -> u64 {
        self.model(model).unwrap()[field].as_u64().unwrap()
    }

    /// How many requests of a model were answered with a status, by its name in C.
    pub fn answers(&self, model: &str, status: &str) -> u64 {
        self.model(model).unwrap()["answers"][status].as_u64().unwrap_or(0)
    }

    pub fn executors(&self) -> &[Value] {
        self.0["executors"].as_array().unwrap()
    }

    /// The executor of a gpulet, unless it is gone.
    pub fn executor(&self, gpulet: &str) -> Option<&Value> {
        let hosts = |it: &Value| it["gpulets"].as_array().unwrap().iter().any(|it| it == gpulet);
        self.executors().iter().find(|it| hosts(it) && it["state"] != "gone")
    }

    /// A gpulet, unless its executor is gone.
    pub fn gpulet(&self, name: &str) -> Option<&Value> {
        let mut gpulets = self.0["gpulets"].as_array().unwrap().iter();
        gpulets.find(|it| it["name"] == name && it["state"] != "gone")
    }

    /// The process of a gpulet's executor.
    pub fn executor_pid(&self, gpulet: &str) -> Option<u32> {
        let executor = self.executor(gpulet).filter(|it| it["state"] == "running")?;
        executor["pid"].as_u64().map(|pid| pid as u32)
    }
}
