//! Kernels without a twin: what they do to the device is seen from outside.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUresult;
use gpulet_kernels::cuda::{Error, Kernels, Pressure, SmSet};

use super::device::{DeviceMemory, Gpu, HostMemory};
use super::{Outcome, Report};

pub fn check(gpu: &Gpu, kernels: &Kernels, report: &mut Report) {
    report.line("probe", probe(gpu, kernels));
    // A quarter of the cache, and eight times it.
    let (inside, beyond) = (gpu.l2_bytes / 4, 8 * gpu.l2_bytes);
    for pause_ns in [0, 20_000] {
        for blocks_per_sm in [1, 8] {
            let blocks = blocks_per_sm * gpu.sm_count;
            let name = |level: &str| {
                format!("pressure_{level}, {blocks} blocks, {} us pauses", pause_ns / 1000)
            };
            report.line(&name("l2"), press(gpu, kernels, false, inside, blocks, pause_ns));
            report.line(&name("dram"), press(gpu, kernels, true, beyond, blocks, pause_ns));
        }
    }
    report.line("busy", busy(gpu, kernels));
    report.line("hang", hang(gpu, kernels));
}

fn text(error: Error) -> String {
    error.to_string()
}

fn probe(gpu: &Gpu, kernels: &Kernels) -> Outcome {
    let bitmap = DeviceMemory::of(&[0; SmSet::BYTES]);
    let begun = Instant::now();
    // SAFETY: a bitmap of this function, which waits for the end.
    unsafe { kernels.probe(gpu.stream, bitmap.all().address, 50_000) }.map_err(text)?;
    gpu.wait().map_err(text)?;
    let took = begun.elapsed();
    let seen = SmSet::from_bytes(&bitmap.read().try_into().unwrap());
    if seen.count() != gpu.sm_count {
        return Err(format!("{} of {} multiprocessors seen: {seen}", seen.count(), gpu.sm_count));
    }
    Ok(format!("all of {seen} in {took:.1?}"))
}

fn press(
    gpu: &Gpu,
    kernels: &Kernels,
    dram: bool,
    bytes: u64,
    blocks: u32,
    pause_ns: u32,
) -> Outcome {
    let memory = DeviceMemory::new(bytes as usize);
    let (stop, done) = (HostMemory::new(4), HostMemory::new(8 * blocks as usize));
    let pressure = Pressure {
        working_set: memory.all(),
        stop: stop.part(0, 4).address,
        done: done.part(0, 8 * blocks as usize).address,
        blocks,
        pause_ns,
    };
    let begun = Instant::now();
    // SAFETY: memory of this function, which waits for the end.
    let launched = unsafe {
        if dram {
            kernels.pressure_dram(gpu.stream, &pressure)
        } else {
            kernels.pressure_l2(gpu.stream, &pressure)
        }
    };
    launched.map_err(text)?;
    std::thread::sleep(Duration::from_millis(60));
    stop.word().store(1, Ordering::Release);
    let stopped = Instant::now();
    gpu.wait().map_err(text)?;
    let (pressed, ending) = (begun.elapsed(), stopped.elapsed());
    let counts = done.bytes().as_chunks::<8>().0.iter().map(|it| u64::from_ne_bytes(*it));
    if let Some(idle) = counts.clone().position(|it| it == 0) {
        return Err(format!("block {idle} read nothing"));
    }
    let rate = counts.sum::<u64>() as f64 / pressed.as_secs_f64() / 1e9;
    Ok(format!("{rate:.0} GB/s, ended {ending:.1?} after the stop"))
}

fn busy(gpu: &Gpu, kernels: &Kernels) -> Outcome {
    let begun = Instant::now();
    // SAFETY: a stream, and no memory.
    unsafe { kernels.busy(gpu.stream, 2 * gpu.sm_count, 64) }.map_err(text)?;
    gpu.wait().map_err(text)?;
    Ok(format!("computed in {:.1?}", begun.elapsed()))
}

fn hang(gpu: &Gpu, kernels: &Kernels) -> Outcome {
    let word = HostMemory::new(4);
    // SAFETY: a word of this function, which waits for the end.
    unsafe { kernels.hang(gpu.stream, word.part(0, 4).address) }.map_err(text)?;
    std::thread::sleep(Duration::from_millis(20));
    let hung = !gpu.is_idle().map_err(text)?;
    word.word().store(1, Ordering::Release);
    gpu.wait().map_err(text)?;
    if hung { Ok("hung until it was let go".to_owned()) } else { Err("it did not hang".to_owned()) }
}

/// Last, as no context survives it.
pub fn fault(gpu: &Gpu, kernels: &Kernels) -> Outcome {
    // SAFETY: nothing is done on this context any more.
    unsafe { kernels.fault(gpu.stream) }.map_err(text)?;
    match gpu.wait() {
        Err(error @ Error::Call { code: CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, .. }) => {
            Ok(format!("as wanted, {error}"))
        }
        other => Err(format!("{other:?} instead of an illegal address")),
    }
}
