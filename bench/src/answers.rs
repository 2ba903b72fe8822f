//! `gpulet-bench answers`: what a GPU answers, against what the CPU answers to the same inputs.
//!
//! Each model is asked through a daemon at every share and number of rows given, with random inputs
//! and with outputs that hold garbage before; and by the libtorch shim of this process, on the CPU.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use gpulet_abi::tensor::Dtype;
use gpulet_client::clock::now_ns;
use gpulet_client::{ModelSpec, Options, Submit, Wait};
use gpulet_daemon::backend::buffer::BatchBuffer;
use gpulet_daemon::backend::torch::Torch;
use gpulet_daemon::backend::{Backend, Instance, View};
use gpulet_daemon::limits::{Limits, SLOT_BYTES_HARD_MAX};
use gpulet_daemon::model::{self, Model, Precision};
use gpulet_kernels::{Part, gather_image};
use serde_json::json;

use crate::daemon::{self, Daemon, answered};
use crate::difference::difference;
use crate::error::Error;
use crate::place::{Place, name_of};
use crate::report::{Figures, Host, Report};
use crate::settings::{Gpulet, Held, Settings};

const ANSWER_NS_MAX: u64 = 120_000_000_000;
const GARBAGE: u8 = 0xa5;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folders of models, each with its model.toml
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// How the gpulet holds its share; several in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "green")]
    mechanism: Vec<Held>,
    /// Shares of the GPU in percent
    #[arg(long, value_delimiter = ',', default_value = "100,25")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    shares: Vec<u8>,
    /// Rows of requests
    #[arg(long, value_delimiter = ',', default_value = "1,3,8")]
    rows: Vec<u32>,
    /// Largest error allowed: the largest difference over the largest value of an output
    #[arg(long, default_value_t = 0.01)]
    bound: f64,
    /// The gpuletd to start [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the comparison and prints a line for each model, share and number of rows.
///
/// # Errors
/// The first failure; and any answer that is off by more than the bound.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let program = daemon::program(arguments.daemon.as_deref())?;
    let (host, place) = (Host::look(), Place::new()?);
    // No more rows than are asked for: each size of batch is warmed up.
    let rows_most = arguments.rows.iter().copied().max();
    for folder in &arguments.models {
        place.add_as(&name_of(folder)?, folder, rows_most.filter(|it| *it > 0))?;
    }
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let torch = Torch::open(None, None, threads)
        .map_err(|why| Error::failed("libtorch on the CPU", why))?;
    let expected: Vec<Expected> = arguments
        .models
        .iter()
        .map(|folder| Expected::of(folder, &torch, &arguments.rows))
        .collect::<Result<_, _>>()?;
    let mut compared = Vec::new();
    for &held in &arguments.mechanism {
        for &share_pct in &arguments.shares {
            let settings = Settings::of(vec![Gpulet::of(held, share_pct)]);
            let daemon = Daemon::start(&program, &place, None, &settings)?;
            for expected in &expected {
                compared.extend(compare(&daemon, expected, held, share_pct)?);
            }
            daemon.stop()?;
        }
    }
    // A NaN is larger than any bound.
    let worst = |error: f64, it: &Compared| if it.error <= error { error } else { it.error };
    let mut figures = Figures::default();
    let error_max = compared.iter().fold(0.0, worst);
    figures.add("error_max", if error_max.is_nan() { f64::MAX } else { error_max });
    figures.add("answers", compared.len() as f64);
    let is_wrong = |it: &&Compared| it.error.is_nan() || it.error > arguments.bound;
    let wrong: Vec<String> = compared.iter().filter(is_wrong).map(ToString::to_string).collect();
    let notes = compared.iter().map(ToString::to_string).collect();
    let settings = json!({"bound": arguments.bound});
    let report = Report { figures, notes, ..Report::new("answers", host, settings) };
    report.publish(arguments.json.as_deref())?;
    if wrong.is_empty() { Ok(()) } else { Err(Error::failed("answers", wrong.join("; "))) }
}

/// What a GPU answered, against the CPU.
struct Compared {
    model: String,
    held: Held,
    share_pct: u8,
    rows: u32,
    error: f64,
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compared { model, held, share_pct, rows, error } = self;
        write!(f, "{model:<20} {:>5} {share_pct:>3} % {rows:>3} rows  {error:.1e}", held.word())
    }
}

/// Asks a daemon for everything that the CPU was asked.
fn compare(
    daemon: &Daemon,
    expected: &Expected,
    held: Held,
    share_pct: u8,
) -> Result<Vec<Compared>, Error> {
    let Expected { model, cases } = expected;
    let dtypes = dtypes_of(model);
    let one = |Case { rows, inputs, outputs }: &Case| {
        let given = ask(daemon, &model.name, *rows, inputs)?;
        let error = difference(&dtypes, outputs, &given);
        Ok(Compared { model: model.name.clone(), held, share_pct, rows: *rows, error })
    };
    cases.iter().map(one).collect()
}

/// A model, and what the CPU answers.
struct Expected {
    model: Model,
    cases: Vec<Case>,
}

/// Inputs, and what the CPU makes of them.
struct Case {
    rows: u32,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
}

impl Expected {
    fn of(folder: &Path, torch: &Torch, rows: &[u32]) -> Result<Expected, Error> {
        let failed = |why: String| Error::failed(format!("{} on the CPU", folder.display()), why);
        let limits = Limits { slot_bytes_max: SLOT_BYTES_HARD_MAX, ..Limits::default() };
        let model = model::load(folder, &limits).map_err(|why| failed(why.to_string()))?;
        // The yardstick is exact, whatever the model computes in.
        let exact = Model { precision: Precision::Fp32, error_max: 0.0, ..model.clone() };
        let mut instance = torch.load_file(&exact).map_err(|why| failed(why.to_string()))?;
        let mut buffer = BatchBuffer::new(&exact).map_err(|why| failed(why.to_string()))?;
        let mut cases = Vec::new();
        for rows in rows.iter().copied().filter(|rows| *rows <= model.max_batch) {
            let inputs = sample(&model, rows);
            let outputs = compute(&model, instance.as_mut(), &mut buffer, rows, &inputs)
                .map_err(|why| failed(why.to_string()))?;
            cases.push(Case { rows, inputs, outputs });
        }
        Ok(Expected { model, cases })
    }
}

/// Random values: floats around 0, indexes that are allowed.
fn sample(model: &Model, rows: u32) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(u64::from(rows));
    let tensor = |tensor: &model::Tensor| {
        let (low, high) = tensor.range.unwrap_or((0, 1));
        let mut bytes = vec![0; (tensor.row_bytes * u64::from(rows)) as usize];
        match tensor.dtype.0 {
            Dtype::F32 => {
                let (values, _) = bytes.as_chunks_mut();
                values.iter_mut().for_each(|it| *it = (2.0 * random.f32() - 1.0).to_ne_bytes());
            }
            Dtype::I64 => {
                let (values, _) = bytes.as_chunks_mut();
                values.iter_mut().for_each(|it| *it = random.i64(low..=high).to_ne_bytes());
            }
            Dtype::U8 => bytes.iter_mut().for_each(|byte| *byte = random.u8(..)),
            _ => {}
        }
        bytes
    };
    model.inputs.iter().map(tensor).collect()
}

fn part(bytes: &mut [u8]) -> Part {
    Part { data: std::ptr::NonNull::from(&mut *bytes).cast(), bytes: bytes.len() }
}

fn compute(
    model: &Model,
    instance: &mut dyn Instance,
    buffer: &mut BatchBuffer,
    rows: u32,
    inputs: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, gpulet_daemon::backend::RunError> {
    for (index, input) in inputs.iter().enumerate() {
        let taken = buffer.input_mut(index, rows);
        match model.inputs[index].pictures() {
            Some(Ok(pictures)) => {
                let mut input = input.clone();
                // SAFETY: two slices of this function.
                unsafe { gather_image(&[part(&mut input)], part(taken), &pictures) };
            }
            _ => taken.copy_from_slice(input),
        }
    }
    let tensors = buffer.tensors(rows);
    instance.run(rows, tensors.inputs(), tensors.outputs())?;
    let bytes = |view: &View<'_>| {
        // SAFETY: memory of the buffer, which is borrowed, and no run is under way.
        unsafe { std::slice::from_raw_parts(view.data().as_ptr(), view.bytes()) }.to_vec()
    };
    Ok(tensors.outputs().iter().map(bytes).collect())
}

fn ask(daemon: &Daemon, name: &str, rows: u32, inputs: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Error> {
    let spec = daemon.model(&mut daemon.session(Options::default())?, name)?;
    let layout = gpulet_abi::tensor::SlotLayout::of_spec(&spec, rows)
        .ok_or_else(|| Error::failed("answers", "so many rows have no layout"))?;
    let mut session = daemon.session(Options {
        wait: Wait::Block,
        slot_bytes: layout.bytes(),
        slot_count: 1,
        ..Options::default()
    })?;
    let spec: ModelSpec = daemon.model(&mut session, name)?;
    // The only slot, from its first byte to its last: what an answer leaves out stays garbage.
    let request = session.claim(spec.model, rows)?;
    for index in 0..spec.output_count {
        let output = session.output_tensor(request, index)?;
        // SAFETY: this process owns the slot until it is submitted.
        unsafe { output.data.write_bytes(GARBAGE, output.bytes as usize) };
    }
    for (index, input) in inputs.iter().enumerate() {
        session.input_bytes_mut(request, index as u32)?.copy_from_slice(input);
    }
    let deadline_ns = now_ns() + ANSWER_NS_MAX;
    session.submit(request, Submit { deadline_ns, ..Submit::default() })?;
    let answer = session.next(2 * ANSWER_NS_MAX)?;
    answered(answer.status).map_err(|_| {
        let text = session.request_error(request).unwrap_or_default();
        Error::failed(format!("request to {name}"), format!("{} {text}", answer.status))
    })?;
    let outputs = (0..spec.output_count)
        .map(|index| session.output_bytes(request, index).map(<[u8]>::to_vec))
        .collect::<Result<_, _>>()?;
    Ok(outputs)
}

fn dtypes_of(model: &Model) -> Vec<Option<Dtype>> {
    model.outputs.iter().map(|tensor| Some(tensor.dtype.0)).collect()
}
