//! `gpuletctl infer`: requests through the daemon.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use gpulet_abi::layout::COMPLETION_LATE;
use gpulet_abi::tensor::{Dtype, SlotLayout};
use gpulet_client::{
    Completion, ModelSpec, Options, Request, Session, Status, Submit, TensorSpec, clock,
};
use serde::Serialize;

use super::latency::{Summary, summaries};
use super::models::name;
use super::values::{Element, Fill, decode, show};
use super::{CtlError, Output, print, print_bytes, print_json};

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;
/// Between two questions after a model that is being loaded.
const LOADING_PAUSE: Duration = Duration::from_millis(50);

/// Send requests to a model through the daemon and show the answer
///
/// Inputs and outputs are raw little-endian tensors without padding, one after the other in the
/// order that `gpuletctl models` shows.
#[derive(Debug, Args)]
pub(super) struct Infer {
    /// The model's name
    model: String,
    #[command(flatten)]
    input: Input,
    /// Rows of one request [default: as many as the input file has, else 1]
    #[arg(short, long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// How long an answer may take, in milliseconds [default: the model's SLO]
    #[arg(short, long, value_name = "MS", value_parser = value_parser!(u64).range(1..=3_600_000))]
    deadline_ms: Option<u64>,
    /// Write the outputs of the last answer into a file instead of showing them; -: standard output
    #[arg(short, long = "output", value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Requests, one after the other
    #[arg(short = 'n', long, default_value_t = 1)]
    #[arg(value_parser = value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    /// Seconds to wait for the model to be loaded, and for one answer, before giving up
    #[arg(long, value_name = "S", default_value_t = 60)]
    #[arg(value_parser = value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// A file with the inputs; -: standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Make the inputs up
    #[arg(long, value_enum, value_name = "WHAT")]
    fill: Option<Fill>,
    /// The same as --fill zeros
    #[arg(long)]
    zeros: bool,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    rows: u32,
    count: u32,
    /// Answered after their deadline, though with outputs.
    late: u64,
    round_trip: Summary,
    queue: Summary,
    execution: Summary,
    outputs: Vec<Values>,
}

#[derive(Debug, Serialize)]
struct Values {
    name: String,
    dtype: &'static str,
    shape: Vec<i64>,
    values: Vec<Element>,
}

/// What requests have been answered with so far.
#[derive(Debug, Default)]
struct Answers {
    round_trip_ns: Vec<u64>,
    queue_ns: Vec<u64>,
    execution_ns: Vec<u64>,
    late: u64,
    failed: u64,
    first_failure: Option<(Status, String)>,
    outputs: Vec<Vec<u8>>,
}

impl Infer {
    pub(super) fn run(&self, socket: Option<&Path>) -> Result<(), CtlError> {
        let content = self.read()?;
        let options = Options { socket: socket.map(Path::to_owned), ..Options::default() };
        let options = options.slots(1);
        let mut session = Session::open(&options)?;
        let mut spec = self.open(&mut session)?;
        let rows = self.rows(&spec, content.as_deref())?;
        let needed = SlotLayout::of_spec(&spec, rows).map_or(u64::MAX, |layout| layout.bytes());
        if needed > session.info().slot_bytes {
            // The default is enough for one row only, and what a row takes is known only now.
            session = Session::open(&Options { slot_bytes: needed, ..options })?;
            spec = session.model_open(&self.model)?;
        }
        let mut answers = Answers::default();
        for _ in 0..self.count {
            self.request(&mut session, &spec, rows, content.as_deref(), &mut answers)?;
        }
        self.report(&spec, rows, answers)
    }

    /// Opens the model; one that is being loaded, as after the daemon's start, is waited for.
    fn open(&self, session: &mut Session) -> Result<ModelSpec, CtlError> {
        let give_up = Instant::now() + Duration::from_secs(self.timeout);
        loop {
            match session.model_open(&self.model) {
                Err(error)
                    if error.status() == Status::ModelLoading && Instant::now() < give_up =>
                {
                    std::thread::sleep(LOADING_PAUSE);
                }
                other => return Ok(other?),
            }
        }
    }

    /// The input file's content, if one is given.
    fn read(&self) -> Result<Option<Vec<u8>>, CtlError> {
        let Some(path) = &self.input.input else { return Ok(None) };
        let mut content = Vec::new();
        let limit = crate::limits::SLOT_BYTES_HARD_MAX;
        let read = if path == Path::new("-") {
            io::stdin().lock().take(limit).read_to_end(&mut content)
        } else {
            File::open(path).and_then(|file| file.take(limit).read_to_end(&mut content))
        };
        read.map_err(|source| CtlError::File { path: path.clone(), source })?;
        Ok(Some(content))
    }

    fn rows(&self, spec: &ModelSpec, content: Option<&[u8]>) -> Result<u32, CtlError> {
        let inputs = spec.inputs().unwrap_or_default();
        let row_bytes: u64 = inputs.iter().map(|input| input.row_bytes).sum();
        let Some(content) = content else { return Ok(self.rows.unwrap_or(1)) };
        let bytes = content.len() as u64;
        let whole = bytes.checked_div(row_bytes).unwrap_or(0);
        match self.rows {
            Some(rows) if u64::from(rows) * row_bytes == bytes => Ok(rows),
            Some(rows) => Err(CtlError::Usage(format!(
                "--input: {rows} rows of {} take {} bytes, the file has {bytes}",
                self.model,
                u64::from(rows) * row_bytes
            ))),
            None if whole > 0
                && bytes.is_multiple_of(row_bytes)
                && whole <= spec.max_batch.into() =>
            {
                Ok(whole as u32)
            }
            None => Err(CtlError::Usage(format!(
                "--input: must have 1 to {} rows of {row_bytes} bytes, has {bytes} bytes",
                spec.max_batch
            ))),
        }
    }

    fn request(
        &self,
        session: &mut Session,
        spec: &ModelSpec,
        rows: u32,
        content: Option<&[u8]>,
        answers: &mut Answers,
    ) -> Result<(), CtlError> {
        let request = session.claim(spec.model, rows)?;
        self.write_inputs(session, spec, request, content)?;
        let begin_ns = clock::now_ns();
        let deadline_ns = self.deadline_ms.map_or(0, |ms| begin_ns.saturating_add(ms * NS_PER_MS));
        session.submit(request, Submit { deadline_ns, ..Submit::default() })?;
        let answer = session.next(self.timeout * NS_PER_S)?;
        let round_trip_ns = clock::now_ns().saturating_sub(begin_ns);
        match Status::from_number(answer.status) {
            Some(Status::Ok) => {
                answers.good(&answer, round_trip_ns);
                answers.outputs = outputs(session, spec, request)?;
            }
            status => {
                let status = status.unwrap_or(Status::Internal);
                let text = session.request_error(request).unwrap_or_default();
                let text = if text.is_empty() { status.text().to_owned() } else { text };
                answers.failed += 1;
                answers.first_failure.get_or_insert((status, text));
            }
        }
        session.release(request)?;
        Ok(())
    }

    fn write_inputs(
        &self,
        session: &mut Session,
        spec: &ModelSpec,
        request: Request,
        mut content: Option<&[u8]>,
    ) -> Result<(), CtlError> {
        let fill = self.input.fill.unwrap_or(Fill::Zeros);
        for (index, input) in (0u32..).zip(spec.inputs().unwrap_or_default()) {
            let memory = session.input_bytes_mut(request, index)?;
            match &mut content {
                Some(content) => {
                    // `rows` found the content to be as long as all inputs together.
                    let (tensor, rest) = content.split_at(memory.len().min(content.len()));
                    memory[..tensor.len()].copy_from_slice(tensor);
                    *content = rest;
                }
                None => fill.write(dtype(input), index.into(), memory),
            }
        }
        Ok(())
    }

    fn report(&self, spec: &ModelSpec, rows: u32, answers: Answers) -> Result<(), CtlError> {
        let summaries_of = (
            Summary::of(answers.round_trip_ns),
            Summary::of(answers.queue_ns),
            Summary::of(answers.execution_ns),
        );
        if let (Some(round_trip), Some(queue), Some(execution)) = summaries_of {
            if let Some(path) = &self.output_file {
                write_outputs(path, &answers.outputs)?;
            }
            let shown = if self.output_file.is_some() { &[] } else { answers.outputs.as_slice() };
            let report = Report {
                model: self.model.clone(),
                rows,
                count: self.count,
                late: answers.late,
                round_trip,
                queue,
                execution,
                outputs: spec
                    .outputs()
                    .unwrap_or_default()
                    .iter()
                    .zip(shown)
                    .map(|(spec, bytes)| values(spec, rows, bytes))
                    .collect(),
            };
            self.print(&report, spec)?;
        }
        match answers.first_failure {
            Some((status, text)) => {
                let (failed, count) = (answers.failed, u64::from(self.count));
                Err(CtlError::Requests { failed, count, status, text })
            }
            None => Ok(()),
        }
    }

    fn print(&self, report: &Report, spec: &ModelSpec) -> Result<(), CtlError> {
        // Standard output can not carry both.
        let raw = self.output_file.as_deref() == Some(Path::new("-"));
        match (self.output.json, raw) {
            (true, false) => print_json(report),
            (false, false) => print(&report.show(spec)),
            (_, true) => {
                eprint!("{}", report.show(spec));
                Ok(())
            }
        }
    }
}

impl Answers {
    fn good(&mut self, answer: &Completion, round_trip_ns: u64) {
        self.round_trip_ns.push(round_trip_ns);
        self.queue_ns.push(answer.queue_ns);
        self.execution_ns.push(answer.exec_ns);
        self.late += u64::from(answer.flags & COMPLETION_LATE != 0);
    }
}

fn dtype(spec: &TensorSpec) -> Dtype {
    // The client library refuses specs with other numbers.
    spec.dtype().unwrap_or(Dtype::U8)
}

fn outputs(
    session: &Session,
    spec: &ModelSpec,
    request: Request,
) -> Result<Vec<Vec<u8>>, CtlError> {
    let output = |index| Ok(session.output_bytes(request, index)?.to_vec());
    (0..spec.output_count).map(output).collect()
}

fn write_outputs(path: &Path, outputs: &[Vec<u8>]) -> Result<(), CtlError> {
    let content = outputs.concat();
    if path == Path::new("-") {
        return print_bytes(&content);
    }
    fs::write(path, content).map_err(|source| CtlError::File { path: path.to_owned(), source })
}

fn values(spec: &TensorSpec, rows: u32, bytes: &[u8]) -> Values {
    let mut shape = spec.dims().unwrap_or_default().to_vec();
    if let Some(first) = shape.first_mut() {
        *first = i64::from(rows);
    }
    let dtype = dtype(spec);
    let values = decode(dtype, bytes);
    Values { name: name(spec).to_owned(), dtype: dtype.name(), shape, values }
}

impl Report {
    fn show(&self, spec: &ModelSpec) -> String {
        let mut text = String::new();
        for (output, spec) in self.outputs.iter().zip(spec.outputs().unwrap_or_default()) {
            text.push_str(&show(&output.name, dtype(spec), &output.shape, &output.values));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&summaries(&[
            ("round trip", &self.round_trip),
            ("in queue", &self.queue),
            ("execution", &self.execution),
        ]));
        if self.late > 0 {
            text.push_str(&format!("{} of {} came late\n", self.late, self.count));
        }
        text
    }
}
