//! The CPU twins against the plainest way to say the same thing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ptr::NonNull;

use gpulet_kernels::{
    Cast, Float, ImageSpec, Layout, Part, cast, gather, gather_cast, gather_image, scatter_cast,
};
use half::{bf16, f16};
use proptest::prelude::*;

fn part(memory: &mut [u8]) -> Part {
    Part { data: NonNull::from(&mut *memory).cast(), bytes: memory.len() }
}

/// One element, cast by the software of `half`, which no processor's instruction has a part in.
fn element(bytes: &[u8], by: Cast) -> Vec<u8> {
    let wide = || f32::from_le_bytes(bytes.try_into().unwrap());
    let half = || u16::from_le_bytes(bytes.try_into().unwrap());
    match by {
        Cast::None => bytes.to_vec(),
        Cast::F32ToF16 => f16::from_f32_const(wide()).to_le_bytes().to_vec(),
        Cast::F32ToBf16 => bf16::from_f32_const(wide()).to_le_bytes().to_vec(),
        Cast::F16ToF32 => f16::from_bits(half()).to_f32_const().to_le_bytes().to_vec(),
        Cast::Bf16ToF32 => bf16::from_bits(half()).to_f32_const().to_le_bytes().to_vec(),
    }
}

fn elements(bytes: &[u8], by: Cast) -> Vec<u8> {
    bytes.chunks_exact(by.bytes_before()).flat_map(|it| element(it, by)).collect()
}

fn cast_of(from: &mut [u8], by: Cast) -> Vec<u8> {
    let mut into = vec![0; from.len() / by.bytes_before() * by.bytes_after()];
    // SAFETY: two vectors.
    let written = unsafe { cast(part(from), part(&mut into), by) };
    assert_eq!(written, into.len() as u64);
    into
}

fn any_cast() -> impl Strategy<Value = Cast> {
    prop::sample::select(Cast::ALL.to_vec())
}

/// Numbers whose conversion is hard: near every power of two that matters, ties, infinities, NaNs.
fn number() -> impl Strategy<Value = f32> {
    let edges = [
        0x0000_0000,
        0x3300_0000,
        0x3380_0000,
        0x3880_0000,
        0x477f_e000,
        0x477f_f000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7f80_0001,
        0x7fc0_0000,
        0x0000_0001,
        0x0080_0000,
    ];
    let edge = (prop::sample::select(edges.to_vec()), -2..=2i32, any::<bool>());
    let edge = edge.prop_map(|(bits, off, sign): (u32, i32, bool)| {
        f32::from_bits(bits.wrapping_add_signed(off) ^ u32::from(sign) << 31)
    });
    let tie = any::<u32>().prop_map(|bits| f32::from_bits(bits & 0xffff_f000 | 0x1000));
    let wide_tie = any::<u32>().prop_map(|bits| f32::from_bits(bits & 0xffff_0000 | 0x8000));
    prop_oneof![any::<u32>().prop_map(f32::from_bits), edge, tie, wide_tie]
}

#[test]
fn every_half_is_widened_and_comes_back() {
    let mut halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (widen, narrow) in [(Cast::F16ToF32, Cast::F32ToF16), (Cast::Bf16ToF32, Cast::F32ToBf16)] {
        let mut wide = cast_of(&mut halves, widen);
        assert_eq!(wide, elements(&halves, widen));
        let back = cast_of(&mut wide, narrow);
        let quiet = if widen == Cast::F16ToF32 { 0x0200u16 } else { 0x0040 };
        for (half, back) in halves.chunks(2).zip(back.chunks(2)) {
            let (half, back) = (u16::from_le_bytes([half[0], half[1]]), [back[0], back[1]]);
            let nan = element(&half.to_le_bytes(), widen);
            let nan = f32::from_le_bytes(nan.try_into().unwrap()).is_nan();
            let wanted = if nan { half | quiet } else { half };
            assert_eq!(u16::from_le_bytes(back), wanted);
        }
    }
}

#[test]
fn numbers_are_rounded_to_the_nearest_and_ties_to_even() {
    let half = |bits: u32, by: Cast| {
        let half = cast_of(&mut bits.to_le_bytes(), by);
        u16::from_le_bytes(half.try_into().unwrap())
    };
    for (bits, wanted) in [
        (0x3f80_0000, 0x3c00), // 1
        (0x3f80_1000, 0x3c00), // a tie, down to even
        (0x3f80_3000, 0x3c02), // a tie, up to even
        (0x3f80_1001, 0x3c01), // just over a tie
        (0x477f_efff, 0x7bff), // just under the tie to infinity
        (0x477f_f000, 0x7c00), // that tie
        (0x3300_0000, 0x0000), // half of the least subnormal: a tie
        (0x3300_0001, 0x0001), // just over it
        (0x8000_0000, 0x8000), // -0
        (0xff80_0001, 0xfe00), // a NaN is quiet and keeps its sign
        (0x7fc0_2000, 0x7e01), // and the top of its payload
    ] {
        assert_eq!(half(bits, Cast::F32ToF16), wanted, "{bits:#x}");
    }
    for (bits, wanted) in [
        (0x3f80_8000, 0x3f80),
        (0x3f81_8000, 0x3f82),
        (0x7f7f_8000, 0x7f80),
        (0x0000_8001, 0x0001),
        (0x7f80_0001, 0x7fc0),
    ] {
        assert_eq!(half(bits, Cast::F32ToBf16), wanted, "{bits:#x}");
    }
}

#[test]
fn a_table_says_which_casts_there_are() {
    assert_eq!(Cast::between(Float::F32, Float::Bf16), Some(Cast::F32ToBf16));
    assert_eq!(Cast::between(Float::F16, Float::F32), Some(Cast::F16ToF32));
    assert_eq!(Cast::between(Float::Bf16, Float::Bf16), Some(Cast::None));
    assert_eq!(Cast::between(Float::Bf16, Float::F16), None);
}

#[test]
#[should_panic = "broken elements"]
fn broken_elements_are_refused() {
    cast_of(&mut [0; 6], Cast::F32ToF16);
}

#[test]
#[should_panic = "do not fit"]
fn what_does_not_fit_when_cast_is_refused() {
    let (mut halves, mut batch) = ([0; 4], [0; 7]);
    // SAFETY: two arrays.
    unsafe { gather_cast(&[part(&mut halves)], part(&mut batch), Cast::F16ToF32) };
}

proptest! {
    #[test]
    fn numbers_are_narrowed_as_by_software(numbers in prop::collection::vec(number(), 0..600)) {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
        for by in [Cast::F32ToF16, Cast::F32ToBf16] {
            prop_assert_eq!(cast_of(&mut bytes, by), elements(&bytes, by));
        }
    }

    /// Parts of any length and alignment, one after another, and not a byte beside them.
    #[test]
    fn gather_and_scatter_are_casts_of_what_is_strung_together(
        lengths in prop::collection::vec(0..700usize, 0..6),
        by in any_cast(), off in 0..4usize, seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut memory: Vec<Vec<u8>> = lengths
            .iter()
            .map(|it| (0..it * by.bytes_before() + off).map(|_| random.u8(..)).collect())
            .collect();
        let strung: Vec<u8> = memory.iter().flat_map(|it| it[off..].to_vec()).collect();
        let wanted = elements(&strung, by);
        let parts: Vec<Part> = memory.iter_mut().map(|it| part(&mut it[off..])).collect();

        let mut batch = vec![0x5a; off + wanted.len() + 1];
        // SAFETY: vectors of this function.
        let written = unsafe { gather_cast(&parts, part(&mut batch[off..]), by) };
        prop_assert_eq!(written, wanted.len() as u64);
        prop_assert_eq!(&batch[off..off + wanted.len()], &wanted[..]);
        prop_assert!(batch[..off].iter().chain(batch.last()).all(|it| *it == 0x5a));

        let mut strung = strung;
        let mut results: Vec<Vec<u8>> =
            lengths.iter().map(|it| vec![0x5a; it * by.bytes_after() + off]).collect();
        let parts: Vec<Part> = results.iter_mut().map(|it| part(&mut it[off..])).collect();
        // SAFETY: as above.
        let read = unsafe { scatter_cast(part(&mut strung), &parts, by) };
        prop_assert_eq!(read, strung.len() as u64);
        let scattered: Vec<u8> = results.iter().flat_map(|it| it[off..].to_vec()).collect();
        prop_assert_eq!(scattered, wanted);
        prop_assert!(results.iter().all(|it| it[..off].iter().all(|byte| *byte == 0x5a)));
    }

    #[test]
    fn pictures_are_normalised(
        size in (1..40u32, 1..40u32), channels in 1..=4usize,
        lengths in prop::collection::vec(0..3usize, 1..4),
        to in prop::sample::select(vec![Float::F32, Float::F16, Float::Bf16]),
        planes in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mean: Vec<f32> = (0..channels).map(|_| random.f32()).collect();
        let std: Vec<f32> = (0..channels).map(|_| random.f32() + 0.1).collect();
        let layout = if planes { Layout::Planes } else { Layout::ChannelsLast };
        let spec = ImageSpec::new(size, &mean, &std, to, layout).unwrap();
        let mut pictures: Vec<Vec<u8>> = lengths
            .iter()
            .map(|it| (0..it * spec.picture_bytes()).map(|_| random.u8(..)).collect())
            .collect();
        let mut batch = vec![0; lengths.iter().sum::<usize>() * spec.batch_bytes() + 1];
        let parts: Vec<Part> = pictures.iter_mut().map(|it| part(it)).collect();
        // SAFETY: vectors of this function.
        let written = unsafe { gather_image(&parts, part(&mut batch), &spec) } as usize;
        prop_assert_eq!(written, batch.len() - 1);

        let pixels = spec.pixels() as usize;
        let strung = pictures.concat();
        for (at, byte) in strung.iter().enumerate() {
            let (picture, pixel, channel) =
                (at / channels / pixels, at / channels % pixels, at % channels);
            let place = match layout {
                Layout::Planes => (picture * channels + channel) * pixels + pixel,
                Layout::ChannelsLast => at,
            };
            let number = &batch[place * to.bytes()..][..to.bytes()];
            let fused = f32::from(*byte).mul_add(spec.scale()[channel], spec.bias()[channel]);
            let wanted = match Cast::between(Float::F32, to).unwrap() {
                Cast::None => fused.to_le_bytes().to_vec(),
                by => element(&fused.to_le_bytes(), by),
            };
            prop_assert_eq!(number, &wanted[..]);
            let (mean, std) = (f64::from(mean[channel]), f64::from(std[channel]));
            let meant = (f64::from(*byte) / 255.0 - mean) / std;
            prop_assert!((f64::from(fused) - meant).abs() < 1e-6 / std, "{fused} for {meant}");
        }
    }

    #[test]
    fn a_plain_gather_is_a_concatenation(
        mut parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
    ) {
        let wanted = parts.concat();
        let mut batch = vec![0; wanted.len()];
        let parts: Vec<Part> = parts.iter_mut().map(|it| part(it)).collect();
        // SAFETY: vectors of this function.
        unsafe { gather(&parts, part(&mut batch)) };
        prop_assert_eq!(batch, wanted);
    }
}
