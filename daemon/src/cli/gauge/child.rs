//! The process that measures.

use std::io::{self, BufRead};
use std::path::Path;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::super::{CtlError, print_bytes};
use super::{Answer, GpuArguments, Load, Opened, Order};
use crate::cuda::gpu::Options;
use crate::cuda::measure::Bench;
use crate::limits::{Limits, SLOT_BYTES_HARD_MAX};
use crate::model::{self, Precision};

/// Answer orders on standard input, for prove-share and profile
#[derive(Debug, Args)]
pub(crate) struct MeasureGpulets {}

impl MeasureGpulets {
    pub(crate) fn run(&self) -> Result<(), CtlError> {
        // The libraries' warnings, such as why there are no kernels.
        let filter =
            EnvFilter::try_from_env("GPULET_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_writer(io::stderr)
            .init();
        let mut bench = None;
        for line in io::stdin().lock().lines() {
            let line =
                line.map_err(|error| CtlError::Measure(format!("standard input: {error}")))?;
            let answer = match serde_json::from_str(&line) {
                Ok(order) => obey(&mut bench, order),
                Err(error) => Answer::Failed(format!("standard input: {error}")),
            };
            let mut text = serde_json::to_string(&answer)
                .map_err(|error| CtlError::Measure(format!("an answer: {error}")))?;
            text.push('\n');
            print_bytes(text.as_bytes())?;
        }
        Ok(())
    }
}

fn obey(bench: &mut Option<Bench>, order: Order) -> Answer {
    answer(bench, order).unwrap_or_else(Answer::Failed)
}

fn answer(bench: &mut Option<Bench>, order: Order) -> Result<Answer, String> {
    if let Order::Open { gpu, shares_pct } = order {
        let opened = bench.insert(open(gpu, shares_pct)?);
        let (gpu, division) = (opened.gpu(), opened.division());
        return Ok(Answer::Opened(Opened {
            describe: gpu.describe(division),
            libtorch: gpu.torch.version().to_owned(),
            sm_count: gpu.device.sm_count,
            gpulets: division.cuts.iter().map(|cut| cut.sm_count).collect(),
        }));
    }
    let bench = bench.as_mut().ok_or("no device is open")?;
    Ok(match order {
        Order::Open { .. } => unreachable!("answered above"),
        Order::Probe => {
            Answer::Probed(bench.probe()?.iter().map(|set| set.iter().collect()).collect())
        }
        Order::Load(load) => {
            let model = find(&load)?;
            Answer::Loaded(bench.load(load.id, &model).map_err(|error| error.to_string())?)
        }
        Order::Unload { id } => {
            bench.unload(id);
            Answer::Unloaded
        }
        Order::Run { parts, until } => Answer::Ran(bench.run(&parts, &until)?),
    })
}

fn open(gpu: GpuArguments, shares_pct: Vec<u8>) -> Result<Bench, String> {
    let options = Options {
        libtorch_dir: gpu.libtorch_dir,
        shim: gpu.torch_shim,
        cuda_shim: gpu.torch_cuda_shim,
        kernel_cache: Some(gpu.kernel_cache),
        nvrtc: gpu.nvrtc,
        shares_pct,
        beside: false,
    };
    Bench::open(&options).map_err(|error| error.to_string())
}

/// Beyond this, answers are not imprecise but wrong, and how long they take is of no use.
const ERROR_MAX: f64 = 0.15;

/// The model as it is to be measured: what a precision costs is measured, not judged.
fn find(load: &Load) -> Result<model::Model, String> {
    let mut model = read(&load.directory)?;
    if let Some(precision) = load.precision {
        model.precision = precision;
    }
    if model.precision != Precision::Fp32 {
        model.error_max = ERROR_MAX;
    }
    if let Some(max_batch) = load.max_batch {
        model.max_batch = max_batch;
    }
    Ok(model)
}

fn read(directory: &Path) -> Result<model::Model, String> {
    // Nothing is shared here, so a slot may be as large as any.
    let limits = Limits { slot_bytes_max: SLOT_BYTES_HARD_MAX, ..Limits::default() };
    model::load(directory, &limits).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_there_is_an_answer() {
        let mut bench = None;
        let text = |answer| match answer {
            Answer::Failed(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(obey(&mut bench, Order::Probe)), "no device is open");
        assert_eq!(text(obey(&mut bench, Order::Unload { id: 1 })), "no device is open");
    }

    #[test]
    fn a_model_is_measured_as_it_is_asked_for() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/models/digits");
        let load = Load { id: 0, directory, precision: None, max_batch: None };
        assert_eq!(find(&load).unwrap().precision, Precision::Fp32);
        let halves = Load { precision: Some(Precision::Fp16), max_batch: Some(3), ..load.clone() };
        let model = find(&halves).unwrap();
        assert_eq!((model.precision, model.max_batch), (Precision::Fp16, 3));
        assert_eq!(model.error_max, ERROR_MAX);
        let nowhere = Load { directory: "/nowhere".into(), ..load };
        assert!(find(&nowhere).unwrap_err().contains("/nowhere"));
    }
}
