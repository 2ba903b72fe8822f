//! Headers of regions: whatever a header says, a region that is attached lies inside its memory.

use arbitrary::{Result, Unstructured};
use gpulet_abi::layout::RegionHeader;
use gpulet_abi::region::{Geometry, Mapping, Region, RegionError};
use gpulet_abi::status::Status;
use gpulet_abi::sync::Ordering;
use gpulet_abi::version;

const HEADER_BYTES: usize = size_of::<RegionHeader>();

/// Judges the input as a whole header, then attaches a real region that the input wrote over.
pub fn run(input: &[u8]) {
    let mut header = RegionHeader { ..bytemuck::Zeroable::zeroed() };
    let bytes = input.len().min(HEADER_BYTES);
    bytemuck::bytes_of_mut(&mut header)[..bytes].copy_from_slice(&input[..bytes]);
    check_header(&header);
    check_header(&RegionHeader { magic: version::MAGIC, version: version::VERSION, ..header });
    // An input that ends early means no more changes.
    let _ = attach(&mut Unstructured::new(input));
}

fn check_header(header: &RegionHeader) {
    let Ok(geometry) = Geometry::of_header(header) else { return };
    assert_eq!(
        (geometry.region_bytes, geometry.slot_bytes),
        (header.region_bytes, header.slot_bytes)
    );
    let last = geometry.slot_offset(geometry.slot_count - 1);
    assert!(last.checked_add(geometry.slot_bytes).is_some_and(|end| end <= geometry.region_bytes));
    assert!(geometry.submission_offset < geometry.completion_offset);
    assert!(geometry.completion_offset < geometry.arena_offset);
    assert!(geometry.slot_offset(0) == geometry.arena_offset);
}

fn attach(input: &mut Unstructured<'_>) -> Result<()> {
    let slot_bytes = u64::from(input.int_in_range(1..=2048u16)?);
    let slot_count = u32::from(input.int_in_range(1..=40u8)?);
    let geometry = Geometry::new(slot_bytes, slot_count).expect("small, and not zero");
    let (_daemon, fd) = Region::create(geometry).expect("memory and descriptors");
    let again = fd.try_clone().expect("descriptors");
    let said_bytes = if input.ratio(1, 8)? { input.arbitrary()? } else { geometry.region_bytes };
    let writer = Mapping::attach(again, geometry.region_bytes, geometry.region_bytes)
        .expect("it is sealed and has that size");
    for _ in 0..input.int_in_range(0..=6u8)? {
        let word = input.int_in_range(0..=HEADER_BYTES / 8 - 1)?;
        writer.atomic_u64(word * 8).store(input.arbitrary()?, Ordering::Relaxed);
    }
    match Region::attach(fd, said_bytes) {
        Ok(client) => {
            // Other slots may fill the same pages.
            let seen = *client.geometry();
            assert_eq!(seen.region_bytes, geometry.region_bytes, "more than the memory has");
            client.slot(seen.slot_count - 1);
            let mut answers = client.completion_consumer();
            assert!(answers.pop().is_ok_and(|answer| answer.is_none()));
            assert_eq!(client.submission_producer().free(), Ok(seen.submission_capacity));
            client.end(Status::Draining);
            assert_eq!(client.ended(), Status::Draining);
        }
        Err(RegionError::Io(error)) => panic!("{error}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Ok(())
}
