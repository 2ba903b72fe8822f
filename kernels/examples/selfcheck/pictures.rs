//! gather_image against its twin: pictures of any size, count, alignment, format and layout.

use fastrand::Rng;
use gpulet_kernels::cuda::Kernels;
use gpulet_kernels::{Float, ImageSpec, Layout, gather_image};

use super::device::{DeviceMemory, Gpu, HostMemory, host_part};
use super::moves::{compare, rounds};
use super::{Outcome, Report};

pub fn check(gpu: &Gpu, kernels: &Kernels, report: &mut Report) {
    for to in [Float::F32, Float::F16, Float::Bf16] {
        for layout in [Layout::Planes, Layout::ChannelsLast] {
            let outcome = rounds(report, |random| gather(gpu, kernels, to, layout, random));
            report.line(&format!("gather_image {to:?} {layout:?}"), outcome);
        }
    }
}

fn spec(random: &mut Rng, to: Float, layout: Layout) -> ImageSpec {
    let channels = random.usize(1..=4);
    let mean: Vec<f32> = (0..channels).map(|_| random.f32()).collect();
    let std: Vec<f32> = (0..channels).map(|_| random.f32() + 0.05).collect();
    let size = match random.u8(..4) {
        0 => (random.u32(1..4), random.u32(1..4)),
        1 => (32, 32),
        2 => (224, 224),
        _ => (random.u32(1..120), random.u32(1..120)),
    };
    ImageSpec::new(size, &mean, &std, to, layout).unwrap()
}

fn gather(gpu: &Gpu, kernels: &Kernels, to: Float, layout: Layout, random: &mut Rng) -> Outcome {
    let spec = spec(random, to, layout);
    let most = if spec.pixels() > 20_000 { 2 } else { 70 };
    let (mut places, mut bytes, mut pictures) = (Vec::new(), 0, 0);
    for _ in 0..random.usize(1..=most) {
        let here = random.usize(..3);
        let start = bytes + random.usize(..70);
        places.push((start, here * spec.picture_bytes()));
        bytes = start + here * spec.picture_bytes();
        pictures += here;
    }
    let mut source = vec![0; bytes];
    random.fill(&mut source);

    let (off, batch_bytes) = (random.usize(..9) * to.bytes(), pictures * spec.batch_bytes());
    let mut wanted = vec![0x5a; off + batch_bytes + 64];
    let device = DeviceMemory::of(&wanted);
    let host = HostMemory::of(&source);
    let parts: Vec<_> = places.iter().map(|it| host.part(it.0, it.1)).collect();
    let into = device.part(off, batch_bytes);
    // SAFETY: memory of this function, which waits for the end.
    let result = unsafe { kernels.gather_image(gpu.stream, &parts, into, &spec) };
    gpu.wait().map_err(|error| error.to_string())?;

    let parts: Vec<_> = places.iter().map(|it| host_part(&mut source, it.0, it.1)).collect();
    // SAFETY: two vectors of this function.
    let bytes = unsafe { gather_image(&parts, host_part(&mut wanted, off, batch_bytes), &spec) };
    if result != Ok(bytes) {
        return Err(format!("{result:?} instead of {bytes} bytes"));
    }
    compare(&device.read(), &wanted).map_err(|error| format!("{spec:?}: {error}"))?;
    Ok(format!("{pictures} pictures in {} parts", parts.len()))
}
