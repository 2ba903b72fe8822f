//! A test in the place of the daemon and of its clients.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::frame;
use gpulet_abi::region::{Geometry, MappedRing, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use gpulet_abi::tensor::{Dtype, SlotLayout, row_bytes};
use gpulet_daemon::model::{Builtin, DtypeName, Model, Precision, Source, Tensor};
use gpulet_daemon::wire::{
    self, Backend, BatchCommand, BatchReport, BatchRequest, FromExecutor, GpuletStart, Link,
    Manner, Start, ToExecutor,
};
use gpulet_plan::profile::LatencyProfile;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An executor and all that its daemon holds of it.
pub struct Executor {
    pub child: Child,
    pub control: Option<OwnedFd>,
    commands: Producer<MappedRing, BatchCommand>,
    reports: Consumer<MappedRing, BatchReport>,
    command_bell: Doorbell,
    report_bell: Doorbell,
    named: u32,
    batches: u64,
}

/// What a test starts unless it says otherwise; no libtorch is needed for built-in models.
pub fn replay_of(profiles_dir: PathBuf) -> Start {
    Start {
        executor: "test".to_owned(),
        gpulets: vec![GpuletStart { name: "test".to_owned(), share_pct: 100 }],
        backend: Backend::Replay { profiles_dir },
        thread_count: 1,
        cpus: Vec::new(),
        spin_ns: 0,
        beside: false,
    }
}

impl Executor {
    /// An executor for built-in models, started.
    pub fn builtin() -> Executor {
        let mut executor = Executor::spawn(&replay_of(std::env::temp_dir()));
        let started = executor.hear();
        assert!(matches!(started, FromExecutor::Started { .. }), "{started:?}");
        executor
    }

    /// A process that was told to start, and has not answered.
    pub fn spawn(start: &Start) -> Executor {
        let (near, far) = frame::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gpulet-executor"))
            .stdin(Stdio::from(far))
            .spawn()
            .unwrap();
        let (link, link_fd) = Link::create().unwrap();
        let (command_bell, report_bell) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
        let (commands, reports) = link.daemon_ends();
        let fds = [link_fd.as_fd(), command_bell.as_fd(), report_bell.as_fd()];
        wire::send(&near, &ToExecutor::Start(Box::new(start.clone())), &fds).unwrap();
        Executor {
            child,
            control: Some(near),
            commands,
            reports,
            command_bell,
            report_bell,
            named: 0,
            batches: 0,
        }
    }

    pub fn name(&mut self) -> u32 {
        self.named += 1;
        self.named
    }

    pub fn tell(&self, message: &ToExecutor) {
        wire::send(self.control.as_ref().unwrap(), message, &[]).unwrap();
    }

    /// The next control message that is no step of a load.
    pub fn hear(&mut self) -> FromExecutor {
        loop {
            match self.hear_step() {
                FromExecutor::Loading { .. } => {}
                answer => return answer,
            }
        }
    }

    /// The next control message.
    pub fn hear_step(&mut self) -> FromExecutor {
        let control = self.control.as_ref().unwrap();
        wait(control);
        wire::receive(control).unwrap().expect("the executor hung up").0
    }

    /// A client's region, mapped by client and executor.
    pub fn map(&mut self, slot_bytes: u64, slot_count: u32) -> Session {
        let geometry = Geometry::new(slot_bytes, slot_count).unwrap();
        let (daemons, fd) = Region::create(geometry).unwrap();
        let region = self.name();
        let message = ToExecutor::Map { region, geometry: (&geometry).into() };
        wire::send(self.control.as_ref().unwrap(), &message, &[fd.as_fd()]).unwrap();
        let mapped = Region::attach(fd, daemons.geometry().region_bytes).unwrap();
        Session { region, mapped }
    }

    /// Loads a model that must load; its instance.
    pub fn load(&mut self, model: &Model) -> u32 {
        let name = self.name();
        self.tell(&ToExecutor::Load {
            instance: name,
            model: Box::new(model.clone()),
            manner: Manner::Whole,
        });
        match self.hear() {
            FromExecutor::Loaded { instance, points, .. } => {
                assert_eq!(instance, name);
                assert!(!points.is_empty());
                for points in points {
                    assert_eq!(points.last().unwrap().rows, model.max_batch);
                    LatencyProfile::new(&model.name, &points).unwrap();
                }
                name
            }
            other => panic!("{other:?}"),
        }
    }

    /// Loads a model that must not load; why.
    pub fn load_error(&mut self, model: &Model) -> String {
        let instance = self.name();
        self.tell(&ToExecutor::Load {
            instance,
            model: Box::new(model.clone()),
            manner: Manner::Whole,
        });
        match self.hear() {
            FromExecutor::LoadFailed { instance: failed, error } if failed == instance => error,
            other => panic!("{other:?}"),
        }
    }

    /// Runs the slots `(session, slot, rows)` as one batch.
    pub fn run(&mut self, instance: u32, slots: &[(&Session, u32, u32)]) -> BatchReport {
        self.run_until(u64::MAX, instance, slots)
    }

    /// The same, refused if it starts later than `latest_start_ns`.
    pub fn run_until(
        &mut self,
        latest_start_ns: u64,
        instance: u32,
        slots: &[(&Session, u32, u32)],
    ) -> BatchReport {
        self.command(BatchCommand { latest_start_ns, ..batch(instance, slots) })
    }

    /// The same, on one of several gpulets.
    pub fn run_on(
        &mut self,
        gpulet: u32,
        instance: u32,
        slots: &[(&Session, u32, u32)],
    ) -> BatchReport {
        self.command(BatchCommand { gpulet, ..batch(instance, slots) })
    }

    /// Has a command run, whatever is in it.
    pub fn command(&mut self, command: BatchCommand) -> BatchReport {
        let batch = self.post(command);
        let report = self.report();
        assert_eq!(report.batch, batch);
        assert!(report.started_ns <= report.finished_ns);
        report
    }

    /// Commits a command; its number.
    pub fn post(&mut self, command: BatchCommand) -> u64 {
        self.batches += 1;
        self.commands.push(&BatchCommand { batch: self.batches, ..command }).unwrap();
        if self.commands.commit() {
            self.command_bell.signal().unwrap();
        }
        self.batches
    }

    /// Commands that can be posted now.
    pub fn room(&mut self) -> u32 {
        self.commands.free().unwrap()
    }

    /// The next report.
    pub fn report(&mut self) -> BatchReport {
        loop {
            if let Some(report) = self.reports.pop().unwrap() {
                self.reports.release();
                return report;
            }
            if self.reports.prepare_sleep().unwrap() {
                wait(&self.report_bell);
                self.reports.awake();
                self.report_bell.clear();
            }
        }
    }

    /// Hangs up, and waits for the end.
    pub fn hang_up(mut self) -> ExitStatus {
        self.control = None;
        self.ended()
    }

    pub fn ended(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "the executor does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A command to run the slots `(session, slot, rows)` as one batch.
fn batch(instance: u32, slots: &[(&Session, u32, u32)]) -> BatchCommand {
    let mut command = BatchCommand {
        latest_start_ns: u64::MAX,
        instance,
        request_count: slots.len() as u32,
        rows: slots.iter().map(|(_, _, rows)| rows).sum(),
        ..BatchCommand::zeroed()
    };
    for (request, (session, slot, rows)) in command.requests.iter_mut().zip(slots) {
        *request = BatchRequest {
            region: session.region,
            slot: *slot,
            rows: *rows,
            ..BatchRequest::zeroed()
        };
    }
    command
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Ended already, or left behind by a test that failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(fd: impl AsFd) {
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "the executor does not answer");
}

/// A client's region, as the client has it.
pub struct Session {
    pub region: u32,
    mapped: Region,
}

impl Session {
    /// All bytes of a slot.
    pub fn slot(&self, slot: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.mapped.geometry().slot_bytes as usize];
        // SAFETY: a slot is mapped for its length, and tests look only when no batch is running.
        unsafe {
            self.mapped.slot(slot).as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len());
        }
        bytes
    }

    /// Writes into a slot.
    pub fn write(&self, slot: u32, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.mapped.geometry().slot_bytes);
        // SAFETY: inside the slot, which is mapped.
        unsafe {
            let target = self.mapped.slot(slot).as_ptr().add(offset as usize);
            target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// The bytes of input `index` of `rows` rows of `model`.
    pub fn input(&self, slot: u32, model: &Model, rows: u32, index: usize) -> Vec<u8> {
        let extent = layout(model, rows).inputs()[index];
        self.slot(slot)[extent.offset as usize..][..extent.bytes as usize].to_vec()
    }

    /// The bytes of output `index` of `rows` rows of `model`.
    pub fn output(&self, slot: u32, model: &Model, rows: u32, index: usize) -> Vec<u8> {
        let extent = layout(model, rows).outputs()[index];
        self.slot(slot)[extent.offset as usize..][..extent.bytes as usize].to_vec()
    }

    /// Writes input `index` of `rows` rows of `model`, which must be all of it.
    pub fn put(&self, slot: u32, model: &Model, rows: u32, index: usize, bytes: &[u8]) {
        let extent = layout(model, rows).inputs()[index];
        assert_eq!(extent.bytes, bytes.len() as u64);
        self.write(slot, extent.offset, bytes);
    }

    /// The text of an error at the first output.
    pub fn text(&self, slot: u32, model: &Model, rows: u32) -> String {
        let slot = self.slot(slot);
        let text = &slot[layout(model, rows).outputs()[0].offset as usize..];
        let end = text.iter().position(|byte| *byte == 0).expect("a NUL before the slot's end");
        String::from_utf8(text[..end].to_vec()).unwrap()
    }
}

pub fn layout(model: &Model, rows: u32) -> SlotLayout {
    let bytes = |tensors: &[Tensor]| tensors.iter().map(|t| t.row_bytes).collect::<Vec<_>>();
    SlotLayout::new(&bytes(&model.inputs), &bytes(&model.outputs), rows).unwrap()
}

pub fn tensor(name: &str, dtype: Dtype, dims: &[i64]) -> Tensor {
    Tensor {
        name: name.to_owned(),
        dtype: DtypeName(dtype),
        dims: dims.to_vec(),
        row_bytes: row_bytes(dtype, dims).unwrap(),
        range: None,
        normalise: None,
    }
}

pub fn model(source: Source, inputs: Vec<Tensor>, outputs: Vec<Tensor>) -> Model {
    Model {
        name: "under-test".to_owned(),
        source,
        slo_ns: 1_000_000_000,
        max_batch: 8,
        warmup_count: 1,
        inputs,
        outputs,
        precision: Precision::Fp32,
        error_max: 0.0,
        stamp: (0, 0),
    }
}

/// An echo of one tensor.
pub fn echo(dtype: Dtype, dims: &[i64]) -> Model {
    let source = Source::Builtin(Builtin::Echo);
    model(source, vec![tensor("in", dtype, dims)], vec![tensor("out", dtype, dims)])
}

/// Bytes that differ from each other and by seed.
pub fn bytes(seed: u8, count: usize) -> Vec<u8> {
    (0..count).map(|index| (index as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}

/// The statuses of the first `count` requests.
pub fn statuses(report: &BatchReport, count: usize) -> Vec<Status> {
    let status = |number: &u8| Status::from_number(i32::from(*number)).unwrap();
    report.statuses[..count].iter().map(status).collect()
}
