//! gather, scatter, bools and fill against their twins: random parts, of any length and alignment.

use fastrand::Rng;
use gpulet_kernels::cuda::{Kernels, Pattern, Stream};
use gpulet_kernels::{Cast, gather_cast, normalise_bools, scatter_cast};

use super::casts;
use super::device::{DeviceMemory, Gpu, HostMemory, host_part};
use super::{Outcome, Report};

/// What is in memory that nothing may write to.
const UNTOUCHED: u8 = 0x5a;

pub fn check(gpu: &Gpu, kernels: &Kernels, report: &mut Report) {
    for by in Cast::ALL {
        let outcome = rounds(report, |random| gather(gpu, kernels, by, random));
        report.line(&format!("gather {by:?}"), outcome);
        let outcome = rounds(report, |random| scatter(gpu, kernels, by, random));
        report.line(&format!("scatter {by:?}"), outcome);
    }
    report.line("nothing at all", nothing(gpu, kernels));
    let outcome = rounds(report, |random| bools(gpu, kernels, random));
    report.line("bools", outcome);
    let outcome = rounds(report, |random| fill(gpu, kernels, random));
    report.line("fill", outcome);
}

/// Many rounds, each of other randomness; the first that fails says how to have it again.
pub fn rounds(report: &Report, round: impl Fn(&mut Rng) -> Outcome) -> Outcome {
    let mut last = String::new();
    for seed in 0..report.rounds {
        last =
            round(&mut Rng::with_seed(seed)).map_err(|error| format!("round {seed}: {error}"))?;
    }
    Ok(format!("{} rounds as the CPU has it, the last {last}", report.rounds))
}

/// Where parts lie in a buffer: places and lengths in bytes, that of a part being whole elements,
/// with a gap before each.
struct Places {
    places: Vec<(usize, usize)>,
    bytes: usize,
}

/// Many parts or few, even or not, aligned or not: as the round has it.
fn places(random: &mut Rng, element_bytes: usize) -> Places {
    let count = [1, 2, 7, 63, 64, 65, 130][random.usize(..7)];
    let longest = [1, 40, 5000, 20_000][random.usize(..4)];
    let even = random.bool().then(|| random.usize(..=longest));
    // Slots are aligned to 64; elements may be, and bytes need not.
    let alignment = [64, element_bytes, 1][random.usize(..3)];
    let (mut places, mut bytes) = (Vec::new(), 0);
    for _ in 0..count {
        let elements = even.unwrap_or_else(|| random.usize(..=longest));
        let start = (bytes + 1 + random.usize(..70)).next_multiple_of(alignment);
        places.push((start, elements * element_bytes));
        bytes = start + elements * element_bytes;
    }
    Places { places, bytes: bytes + 64 }
}

/// Few multiprocessors or all of them: a grid of any size must do.
fn stream(gpu: &Gpu, random: &mut Rng) -> Stream {
    Stream { sm_count: [1, 3, gpu.sm_count][random.usize(..3)], ..gpu.stream }
}

/// The first difference, if there is one.
pub fn compare(got: &[u8], wanted: &[u8]) -> Result<(), String> {
    match got.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
        None if got.len() == wanted.len() => Ok(()),
        None => Err(format!("{} bytes instead of {}", got.len(), wanted.len())),
        Some(at) => {
            let (got, wanted) = (got[at], wanted[at]);
            Err(format!("byte {at} is {got:#04x} instead of {wanted:#04x}"))
        }
    }
}

fn gather(gpu: &Gpu, kernels: &Kernels, by: Cast, random: &mut Rng) -> Outcome {
    let from = places(random, by.bytes_before());
    let mut source = casts::numbers(random, by, from.bytes);
    let total: usize = from.places.iter().map(|(_, bytes)| bytes).sum();
    let batch_bytes = total / by.bytes_before() * by.bytes_after();
    let off = [0, by.bytes_after(), 1, 64][random.usize(..4)];

    let mut wanted = vec![UNTOUCHED; off + batch_bytes + 64];
    let device = DeviceMemory::of(&wanted);
    let host = HostMemory::of(&source);
    let parts: Vec<_> = from.places.iter().map(|it| host.part(it.0, it.1)).collect();
    let into = device.part(off, batch_bytes);
    // SAFETY: all of it is memory of this function, which waits for the end.
    let result = unsafe { kernels.gather(stream(gpu, random), &parts, into, by) };
    gpu.wait().map_err(|error| error.to_string())?;

    let parts: Vec<_> = from.places.iter().map(|it| host_part(&mut source, it.0, it.1)).collect();
    // SAFETY: two vectors of this function.
    let bytes = unsafe { gather_cast(&parts, host_part(&mut wanted, off, batch_bytes), by) };
    if result != Ok(bytes) {
        return Err(format!("{result:?} instead of {bytes} bytes"));
    }
    compare(&device.read(), &wanted)?;
    Ok(format!("{} parts, {bytes} bytes", parts.len()))
}

fn scatter(gpu: &Gpu, kernels: &Kernels, by: Cast, random: &mut Rng) -> Outcome {
    let to = places(random, by.bytes_after());
    let total: usize = to.places.iter().map(|(_, bytes)| bytes).sum();
    let batch_bytes = total / by.bytes_after() * by.bytes_before();
    let off = [0, by.bytes_before(), 1, 64][random.usize(..4)];
    let mut source = casts::numbers(random, by, off + batch_bytes);

    let mut wanted = vec![UNTOUCHED; to.bytes];
    let device = DeviceMemory::of(&source);
    let host = HostMemory::of(&wanted);
    let parts: Vec<_> = to.places.iter().map(|it| host.part(it.0, it.1)).collect();
    let from = device.part(off, batch_bytes);
    // SAFETY: all of it is memory of this function, which waits for the end.
    let result = unsafe { kernels.scatter(stream(gpu, random), from, &parts, by) };
    gpu.wait().map_err(|error| error.to_string())?;

    let parts: Vec<_> = to.places.iter().map(|it| host_part(&mut wanted, it.0, it.1)).collect();
    // SAFETY: two vectors of this function.
    let bytes = unsafe { scatter_cast(host_part(&mut source, off, batch_bytes), &parts, by) };
    if result != Ok(bytes) {
        return Err(format!("{result:?} instead of {bytes} bytes"));
    }
    compare(host.bytes(), &wanted)?;
    Ok(format!("{} parts, {bytes} bytes", parts.len()))
}

fn nothing(gpu: &Gpu, kernels: &Kernels) -> Outcome {
    let device = DeviceMemory::of(&[UNTOUCHED; 8]);
    let (all, none) = (device.all(), device.part(3, 0));
    // SAFETY: memory of this function, which waits for the end.
    let results = unsafe {
        [
            kernels.gather(gpu.stream, &[], all, Cast::None),
            kernels.gather(gpu.stream, &[none, none], all, Cast::F32ToF16),
            kernels.scatter(gpu.stream, all, &[none], Cast::None),
            kernels.bools(gpu.stream, none).map(|()| 0),
            kernels.fill(gpu.stream, none, Pattern::U8(1)).map(|()| 0),
        ]
    };
    gpu.wait().map_err(|error| error.to_string())?;
    compare(&device.read(), &[UNTOUCHED; 8])?;
    match results.iter().find(|it| **it != Ok(0)) {
        Some(other) => Err(format!("{other:?}")),
        None => Ok("no byte was touched".to_owned()),
    }
}

fn bools(gpu: &Gpu, kernels: &Kernels, random: &mut Rng) -> Outcome {
    let (off, bytes) = (random.usize(..40), [random.usize(..100), random.usize(..200_000)]);
    let bytes = bytes[random.usize(..2)];
    let mut wanted: Vec<u8> =
        (0..off + bytes + 40).map(|_| [0, 1, 0x80, random.u8(..)][random.usize(..4)]).collect();
    let device = DeviceMemory::of(&wanted);
    // SAFETY: memory of this function, which waits for the end.
    let result = unsafe { kernels.bools(stream(gpu, random), device.part(off, bytes)) };
    result.and_then(|()| gpu.wait()).map_err(|error| error.to_string())?;
    // SAFETY: a vector of this function.
    unsafe { normalise_bools(host_part(&mut wanted, off, bytes)) };
    compare(&device.read(), &wanted)?;
    Ok(format!("{bytes} bytes"))
}

fn fill(gpu: &Gpu, kernels: &Kernels, random: &mut Rng) -> Outcome {
    let value = random.u32(..);
    let (pattern, unit) =
        [(Pattern::U8(value as u8), 1), (Pattern::U16(value as u16), 2), (Pattern::U32(value), 4)]
            [random.usize(..3)];
    let off = random.usize(..40) * unit;
    let bytes = [random.usize(..100), random.usize(..200_000)][random.usize(..2)];
    let mut wanted = vec![UNTOUCHED; off + bytes + 40];
    let device = DeviceMemory::of(&wanted);
    // SAFETY: memory of this function, which waits for the end.
    let result = unsafe { kernels.fill(stream(gpu, random), device.part(off, bytes), pattern) };
    result.and_then(|()| gpu.wait()).map_err(|error| error.to_string())?;
    let one = &value.to_le_bytes()[..unit];
    let all = one.iter().cycle();
    wanted[off..off + bytes].iter_mut().zip(all).for_each(|(byte, value)| *byte = *value);
    compare(&device.read(), &wanted)?;
    Ok(format!("{bytes} bytes of {pattern:?}"))
}
