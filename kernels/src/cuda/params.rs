//! What kernels take: the twins of the structures in `cuda/`, and the cutting of parts into tiles.

use crate::{CHANNELS_MAX, Cast, Float, ImageSpec, Layout};

use super::kernels::{DevicePart, Pattern};

/// The most parts of one launch. More are several launches.
pub const PARTS_MAX: usize = 64;

/// Threads of a block of every kernel that walks memory.
pub const THREADS: u32 = 256;
/// Threads of a block of a probe.
pub const PROBE_THREADS: u32 = 1024;
/// How many blocks of [`THREADS`] a multiprocessor holds at once, by the registers they take.
pub const BLOCKS_PER_SM: u32 = 5;

/// Bytes of a tile on its wider side: four words of 16 for each thread.
const TILE_BYTES: u64 = 16 * 1024;
/// Pixels of a tile.
const TILE_PIXELS: u32 = 1024;
/// Bytes of a chunk of a working set.
pub const CHUNK_BYTES: u64 = 64 * 1024;

/// Parts that lie one after another in a batch.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Parts {
    address: [u64; PARTS_MAX],
    begin: [u64; PARTS_MAX + 1],
    first_tile: [u32; PARTS_MAX + 1],
    count: u32,
}

impl Parts {
    /// Each of `parts` has `part.bytes / element_bytes` elements, and so many make `tiles(elements)`
    /// tiles.
    fn new(parts: &[DevicePart], element_bytes: u64, tiles: impl Fn(u64) -> u64) -> Parts {
        let mut it = Parts {
            address: [0; PARTS_MAX],
            begin: [0; PARTS_MAX + 1],
            first_tile: [0; PARTS_MAX + 1],
            count: parts.len() as u32,
        };
        for (index, part) in parts.iter().enumerate() {
            assert!(part.bytes.is_multiple_of(element_bytes), "a part of broken elements");
            let elements = part.bytes / element_bytes;
            let next_tile = u64::from(it.first_tile[index]) + tiles(elements);
            it.address[index] = part.address;
            it.begin[index + 1] = it.begin[index] + elements;
            it.first_tile[index + 1] =
                u32::try_from(next_tile).expect("no memory has four billion tiles");
        }
        it
    }

    /// How many elements there are in all.
    pub fn elements(&self) -> u64 {
        self.begin[self.count as usize]
    }

    /// How many tiles there are in all.
    pub fn tiles(&self) -> u32 {
        self.first_tile[self.count as usize]
    }
}

/// What `gather` and `scatter` take.
#[repr(C)]
pub struct Move {
    pub parts: Parts,
    batch: u64,
    tile: u32,
    cast: u32,
}

impl Move {
    /// `element_bytes` are those of an element in the parts, before or after the cast.
    pub fn new(parts: &[DevicePart], element_bytes: usize, batch: u64, cast: Cast) -> Move {
        let tile = TILE_BYTES / cast.bytes_before().max(cast.bytes_after()) as u64;
        let parts = Parts::new(parts, element_bytes as u64, |elements| elements.div_ceil(tile));
        Move { parts, batch, tile: tile as u32, cast: cast as u32 }
    }
}

/// What `gather_image` takes.
#[repr(C)]
pub struct Pictures {
    pub parts: Parts,
    batch: u64,
    pixels: u32,
    channels: u32,
    tiles: u32,
    to: u32,
    channels_last: u32,
    scale: [f32; CHANNELS_MAX],
    bias: [f32; CHANNELS_MAX],
    zero: u32,
}

impl Pictures {
    pub fn new(parts: &[DevicePart], batch: u64, spec: &ImageSpec) -> Pictures {
        let tiles = spec.pixels().div_ceil(TILE_PIXELS);
        let picture_bytes = spec.picture_bytes() as u64;
        Pictures {
            parts: Parts::new(parts, picture_bytes, |pictures| pictures * u64::from(tiles)),
            batch,
            pixels: spec.pixels(),
            channels: spec.channels(),
            tiles,
            to: spec.to() as u32,
            channels_last: u32::from(spec.layout() == Layout::ChannelsLast),
            scale: spec.scale(),
            bias: spec.bias(),
            zero: 0,
        }
    }
}

/// What `bools` takes.
#[repr(C)]
pub struct Bools {
    pub address: u64,
    pub bytes: u64,
}

impl Bools {
    pub fn tiles(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(TILE_BYTES)).expect("no memory has four billion tiles")
    }
}

/// What `fill` takes.
#[repr(C)]
pub struct Fill {
    pub address: u64,
    pub bytes: u64,
    pub pattern: u32,
    pub reserved: u32,
}

impl Fill {
    pub fn new(part: DevicePart, pattern: Pattern) -> Fill {
        let DevicePart { address, bytes } = part;
        assert!(address.is_multiple_of(pattern.bytes()), "a stretch that begins inside a pattern");
        Fill { address, bytes, pattern: pattern.word(), reserved: 0 }
    }

    pub fn tiles(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(TILE_BYTES)).expect("no memory has four billion tiles")
    }
}

/// What `probe` takes.
#[repr(C)]
pub struct Probe {
    pub bitmap: u64,
    pub words: u32,
    pub stay_ns: u32,
}

/// What `pressure_l2` and `pressure_dram` take.
#[repr(C)]
pub struct Press {
    pub address: u64,
    pub stop: u64,
    pub done: u64,
    pub chunks: u32,
    pub pause_ns: u32,
    pub zero: u32,
    pub reserved: u32,
}

/// What `busy` takes.
#[repr(C)]
pub struct Busy {
    pub sink: u64,
    pub rounds: u32,
    pub zero: u32,
}

/// What `fault` and `hang` take.
#[repr(C)]
pub struct Drill {
    pub address: u64,
}

// The sizes that the sources in `cuda/` assert too, and the numbers that they give the variants.
const _: () = {
    assert!(size_of::<Parts>() == 1296);
    assert!(size_of::<Move>() == 1312);
    assert!(size_of::<Pictures>() == 1360);
    assert!(size_of::<Bools>() == 16);
    assert!(size_of::<Fill>() == 24);
    assert!(size_of::<Probe>() == 16);
    assert!(size_of::<Press>() == 40);
    assert!(size_of::<Busy>() == 16);
    assert!(size_of::<Drill>() == 8);
    assert!(Float::F32 as u32 == 0 && Float::F16 as u32 == 1 && Float::Bf16 as u32 == 2);
    assert!(Cast::None as u32 == 0 && Cast::F32ToF16 as u32 == 1 && Cast::F32ToBf16 as u32 == 2);
    assert!(Cast::F16ToF32 as u32 == 3 && Cast::Bf16ToF32 as u32 == 4);
    // Every tile of a part is then aligned as the part is.
    assert!(TILE_BYTES.is_multiple_of(64));
};

#[cfg(test)]
mod tests {
    use super::*;

    fn part(address: u64, bytes: u64) -> DevicePart {
        DevicePart { address, bytes }
    }

    #[test]
    fn parts_are_cut_into_tiles() {
        let parts = [part(0x1000, 16_384), part(0x9000, 0), part(0xa001, 16_385), part(7, 4)];
        let it = Move::new(&parts, 1, 0, Cast::None);
        assert_eq!(it.parts.first_tile[..5], [0, 1, 1, 3, 4]);
        assert_eq!(it.parts.begin[..5], [0, 16_384, 16_384, 32_769, 32_773]);
        assert_eq!((it.parts.tiles(), it.parts.elements(), it.tile), (4, 32_773, 16_384));
    }

    #[test]
    fn elements_are_those_of_the_parts() {
        let wide = Move::new(&[part(0, 16_388)], 4, 0, Cast::F32ToF16);
        assert_eq!((wide.parts.elements(), wide.parts.tiles(), wide.tile), (4097, 2, 4096));
        let narrow = Move::new(&[part(0, 8192)], 2, 0, Cast::F32ToF16);
        assert_eq!((narrow.parts.elements(), narrow.parts.tiles(), narrow.tile), (4096, 1, 4096));
    }

    #[test]
    fn no_tile_spans_pictures() {
        let (mean, std) = ([0.5; 3], [0.5; 3]);
        let spec = ImageSpec::new((5, 205), &mean, &std, Float::F16, Layout::Planes).unwrap();
        let it = Pictures::new(&[part(0, 3 * 1025), part(0, 9 * 1025)], 0, &spec);
        assert_eq!(it.parts.first_tile[..3], [0, 2, 8]);
        assert_eq!(it.parts.begin[..3], [0, 1, 4]);
    }

    #[test]
    #[should_panic = "broken elements"]
    fn broken_elements_are_refused() {
        Move::new(&[part(0, 6)], 4, 0, Cast::F32ToBf16);
    }
}
