//! What gather and scatter reach, against copies by the DMA engine: one a part.
//!
//! Times are what a caller sees: from the first call to the end of the work, medians.

use std::time::{Duration, Instant};

use cudarc::driver::sys;
use gpulet_kernels::cuda::{DevicePart, Kernels, Stream, check};
use gpulet_kernels::{Cast, Float, ImageSpec, Layout};

use super::device::{DeviceMemory, Gpu, HostMemory};

const SIZES: [usize; 9] =
    [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
const PARTS: [usize; 4] = [1, 4, 16, 64];
const ROUNDS: usize = 41;

pub fn measure(gpu: &Gpu, kernels: &Kernels) {
    let most = SIZES[SIZES.len() - 1];
    let (host, device) = (HostMemory::new(most), DeviceMemory::new(most));
    compare(gpu, kernels, &host, &device, true);
    compare(gpu, kernels, &host, &device, false);
    by_multiprocessors(gpu, kernels, &host, &device);
    pictures(gpu, kernels, &host, &device);
}

/// How long the calls take, and how long until all is done.
#[derive(Clone, Copy)]
struct Taken {
    calls: Duration,
    done: Duration,
}

fn time(gpu: &Gpu, work: impl Fn()) -> Taken {
    let mut taken = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        work();
        let calls = begun.elapsed();
        gpu.wait().unwrap();
        taken.push(Taken { calls, done: begun.elapsed() });
    }
    let median = |of: fn(&Taken) -> Duration| {
        let mut times: Vec<Duration> = taken.iter().map(of).collect();
        times.sort();
        times[times.len() / 2]
    };
    Taken { calls: median(|it| it.calls), done: median(|it| it.done) }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Equal parts of the first `bytes` bytes.
fn parts(host: &HostMemory, bytes: usize, count: usize) -> Vec<DevicePart> {
    let each = bytes / count;
    (0..count).map(|it| host.part(it * each, each)).collect()
}

fn copies(
    gpu: &Gpu,
    host: &HostMemory,
    device: &DeviceMemory,
    each: usize,
    count: usize,
    inwards: bool,
) {
    for part in 0..count {
        let there = device.part(part * each, each).address;
        let here = host.bytes()[part * each..].as_ptr();
        // SAFETY: inside both; what comes out of it is nobody's before the wait.
        let result = unsafe {
            if inwards {
                sys::cuMemcpyHtoDAsync_v2(there, here.cast(), each, gpu.stream.raw)
            } else {
                sys::cuMemcpyDtoHAsync_v2(here.cast_mut().cast(), there, each, gpu.stream.raw)
            }
        };
        check(result, "cuMemcpyAsync", "a part").unwrap();
    }
}

fn moves(kernels: &Kernels, on: Stream, parts: &[DevicePart], batch: DevicePart, inwards: bool) {
    // SAFETY: inside both; what comes out of it is nobody's before the wait.
    let result = unsafe {
        if inwards {
            kernels.gather(on, parts, batch, Cast::None)
        } else {
            kernels.scatter(on, batch, parts, Cast::None)
        }
    };
    result.unwrap();
}

fn compare(gpu: &Gpu, kernels: &Kernels, host: &HostMemory, device: &DeviceMemory, inwards: bool) {
    let (kernel, copy) = if inwards { ("gather", "HtoD") } else { ("scatter", "DtoH") };
    println!(
        "\n{:>9} {:>5}  {kernel:>8} {:>8} {:>6}  {copy:>8} {:>8} {:>6}  faster",
        "bytes", "parts", "calls", "GB/s", "calls", "GB/s"
    );
    let mut crossovers = Vec::new();
    for count in PARTS {
        let mut copy_won = Vec::new();
        for bytes in SIZES {
            let (parts, batch) = (parts(host, bytes, count), device.part(0, bytes));
            let kernel_took = time(gpu, || moves(kernels, gpu.stream, &parts, batch, inwards));
            let copy_took = time(gpu, || copies(gpu, host, device, bytes / count, count, inwards));
            copy_won.push(copy_took.done < kernel_took.done);
            println!(
                "{bytes:>9} {count:>5}  {:>8.1} {:>8.1} {:>6.1}  {:>8.1} {:>8.1} {:>6.1}  {}",
                micros(kernel_took.done),
                micros(kernel_took.calls),
                rate(bytes, kernel_took.done),
                micros(copy_took.done),
                micros(copy_took.calls),
                rate(bytes, copy_took.done),
                if copy_took.done < kernel_took.done { copy } else { kernel }
            );
        }
        // From the largest down, as long as copies won.
        let first = SIZES.iter().zip(&copy_won).rev().take_while(|(_, won)| **won).last();
        let from = first.map_or("never".to_owned(), |(bytes, _)| format!("from {bytes} bytes up"));
        crossovers.push(format!("{count} parts: {from}"));
    }
    println!("{copy} is faster than {kernel}: {} (times in us)", crossovers.join("; "));
}

/// How many multiprocessors fill the bus.
fn by_multiprocessors(gpu: &Gpu, kernels: &Kernels, host: &HostMemory, device: &DeviceMemory) {
    let (bytes, count) = (4 << 20, 8);
    println!("\n{bytes} bytes in {count} parts   gather us   GB/s   scatter us   GB/s");
    let (parts, batch) = (parts(host, bytes, count), device.part(0, bytes));
    for sm_count in [1, 2, 4, 8, 16, 32, gpu.sm_count] {
        let on = Stream { sm_count, ..gpu.stream };
        let inwards = time(gpu, || moves(kernels, on, &parts, batch, true)).done;
        let outwards = time(gpu, || moves(kernels, on, &parts, batch, false)).done;
        println!(
            "grid for {sm_count:>3} SMs {:>21.1} {:>6.1} {:>12.1} {:>6.1}",
            micros(inwards),
            rate(bytes, inwards),
            micros(outwards),
            rate(bytes, outwards)
        );
    }
}

/// Raw pictures through the kernel, against the same pictures sent as f32.
fn pictures(gpu: &Gpu, kernels: &Kernels, host: &HostMemory, device: &DeviceMemory) {
    println!("\npictures 224 x 224 x 3   raw to f32 us   raw to f16 us   copied as f32 us");
    for count in [1, 8, 32] {
        let raw = |to: Float| {
            let (mean, std) = ([0.5; 3], [0.25; 3]);
            let spec = ImageSpec::new((224, 224), &mean, &std, to, Layout::Planes).unwrap();
            let parts = parts(host, count * spec.picture_bytes(), count);
            let into = device.part(0, count * spec.batch_bytes());
            let work = || {
                // SAFETY: inside both; what comes out of it is nobody's before the wait.
                unsafe { kernels.gather_image(gpu.stream, &parts, into, &spec) }.unwrap();
            };
            micros(time(gpu, work).done)
        };
        let each = 224 * 224 * 3 * 4;
        let copied = micros(time(gpu, || copies(gpu, host, device, each, count, true)).done);
        println!("{count:>22} {:>15.1} {:>15.1} {copied:>18.1}", raw(Float::F32), raw(Float::F16));
    }
}
