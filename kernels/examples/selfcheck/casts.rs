//! Casts against their twins: every half there is, and every f32 that is hard, or that is at all.

use fastrand::Rng;
use gpulet_kernels::Cast;
use gpulet_kernels::cuda::Kernels;

use super::device::{DeviceMemory, Gpu, host_part};
use super::moves::compare;
use super::{Outcome, Report};

pub fn check(gpu: &Gpu, kernels: &Kernels, exhaustive: bool, report: &mut Report) {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for by in [Cast::F16ToF32, Cast::Bf16ToF32] {
        let outcome = cast(gpu, kernels, by, halves.clone());
        report.line(&format!("every half, {by:?}"), outcome.map(|()| "65,536 of them".to_owned()));
    }
    for by in [Cast::F32ToF16, Cast::F32ToBf16] {
        report.line(&format!("hard numbers, {by:?}"), hard(gpu, kernels, by));
        if exhaustive {
            report.line(&format!("every number, {by:?}"), every(gpu, kernels, by));
        }
    }
}

/// Bytes for a cast: numbers that are hard to convert among any.
pub fn numbers(random: &mut Rng, by: Cast, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    random.fill(&mut all);
    if matches!(by, Cast::F32ToF16 | Cast::F32ToBf16) {
        for number in all.chunks_exact_mut(4) {
            let bits = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
            number.copy_from_slice(&hardened(bits).to_le_bytes());
        }
    }
    all
}

/// A number near where rounding is decided: at ties, at the ends of both formats, among NaNs.
fn hardened(bits: u32) -> u32 {
    const EDGES: [u32; 8] = [
        0,
        0x3300_0000,
        0x3380_0000,
        0x3880_0000,
        0x477f_f000,
        0x7f7f_8000,
        0x7f80_0000,
        0x7fc0_0000,
    ];
    let near = EDGES[(bits >> 8 & 7) as usize].wrapping_add_signed((bits & 7) as i32 - 3);
    match bits >> 11 & 7 {
        0 => near ^ bits & 0x8000_0000,
        1 => bits & 0xffff_f000 | 0x1000,
        2 => bits & 0xffff_0000 | 0x8000,
        3 => bits & 0x9fff_ffff | 0x2000_0000,
        _ => bits,
    }
}

fn cast(gpu: &Gpu, kernels: &Kernels, by: Cast, mut from: Vec<u8>) -> Result<(), String> {
    let bytes = from.len() / by.bytes_before() * by.bytes_after();
    let (source, target) = (DeviceMemory::of(&from), DeviceMemory::new(bytes));
    // SAFETY: memory of this function, which waits for the end.
    let result = unsafe { kernels.cast(gpu.stream, source.all(), target.all(), by) };
    result.and_then(|_| gpu.wait()).map_err(|error| error.to_string())?;
    let mut wanted = vec![0; bytes];
    let length = from.len();
    let source = host_part(&mut from, 0, length);
    // SAFETY: two vectors of this function.
    unsafe { gpulet_kernels::cast(source, host_part(&mut wanted, 0, bytes), by) };
    compare(&target.read(), &wanted)
}

fn hard(gpu: &Gpu, kernels: &Kernels, by: Cast) -> Outcome {
    let count = 1 << 18;
    let numbers = numbers(&mut Rng::with_seed(1), by, 4 * count);
    cast(gpu, kernels, by, numbers).map(|()| format!("{count} of them"))
}

fn every(gpu: &Gpu, kernels: &Kernels, by: Cast) -> Outcome {
    const AT_ONCE: u32 = 1 << 24;
    for top in 0..=u32::MAX / AT_ONCE {
        let first = top * AT_ONCE;
        let numbers = (first..=first + (AT_ONCE - 1)).flat_map(u32::to_le_bytes).collect();
        cast(gpu, kernels, by, numbers).map_err(|error| format!("from {first:#x}: {error}"))?;
    }
    Ok("4,294,967,296 of them".to_owned())
}
