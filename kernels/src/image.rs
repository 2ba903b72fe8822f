//! Raw pictures to normalised numbers on the CPU: the twin of `cuda/image.cu`.
//!
//! A picture is rows of pixels of up to four channels of a byte each, as cameras and decoders leave
//! it: a quarter of what the same picture takes as f32. Models want `(byte / 255 - mean) / std`,
//! mostly in planes of one channel each. Here that is `byte * scale + bias`, fused and rounded
//! once, with a scale and a bias computed once for all: so a GPU comes to the same bits.

use std::ptr;

use half::{bf16, f16};

use crate::{Float, Part};

/// The most channels a picture has.
pub const CHANNELS_MAX: usize = 4;

/// The most bytes of a picture: room for 16,384 x 16,384 x 4, and far from any overflow.
const PICTURE_BYTES_MAX: u64 = 1 << 30;

/// How many pixels are converted at a time, through the stack.
const RUN: usize = 256;

/// Where the channels of a picture lie in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A plane of each channel.
    Planes,
    /// The channels of each pixel side by side, as in the picture itself.
    ChannelsLast,
}

/// What was wrong with an [`ImageSpec`].
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ImageError {
    /// No pixels.
    #[error("a picture of {height} x {width} pixels has no pixels")]
    Empty {
        /// Rows.
        height: u32,
        /// Pixels of a row.
        width: u32,
    },
    /// More bytes than a picture may have.
    #[error(
        "a picture of {height} x {width} pixels of {channels} channels is over {} bytes",
        PICTURE_BYTES_MAX
    )]
    TooLarge {
        /// Rows.
        height: u32,
        /// Pixels of a row.
        width: u32,
        /// Bytes of a pixel.
        channels: usize,
    },
    /// Not 1 to 4 channels, or not a mean and a standard deviation for each.
    #[error(
        "{means} means and {stds} standard deviations: a picture has 1 to {} channels, and one of \
         each for each",
        CHANNELS_MAX
    )]
    Channels {
        /// How many means there were.
        means: usize,
        /// How many standard deviations there were.
        stds: usize,
    },
    /// A mean or a standard deviation that makes no finite numbers.
    #[error("channel {channel}: mean {mean} and standard deviation {std} give no finite numbers")]
    Numbers {
        /// Which channel, from 0.
        channel: usize,
        /// Its mean.
        mean: f32,
        /// Its standard deviation.
        std: f32,
    },
}

/// What pictures are and what is to become of them. Checked when it was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageSpec {
    pixels: u32,
    channels: u32,
    scale: [f32; CHANNELS_MAX],
    bias: [f32; CHANNELS_MAX],
    to: Float,
    layout: Layout,
}

impl ImageSpec {
    /// Pictures of `height` rows of `width` pixels, of as many channels as there are means, each
    /// `(byte / 255 - mean) / std`, as `to`, in `layout`.
    pub fn new(
        (height, width): (u32, u32),
        mean: &[f32],
        std: &[f32],
        to: Float,
        layout: Layout,
    ) -> Result<ImageSpec, ImageError> {
        let channels = mean.len();
        if !(1..=CHANNELS_MAX).contains(&channels) || std.len() != channels {
            return Err(ImageError::Channels { means: channels, stds: std.len() });
        }
        let pixels = u64::from(height) * u64::from(width);
        if pixels == 0 {
            return Err(ImageError::Empty { height, width });
        }
        if pixels > PICTURE_BYTES_MAX / channels as u64 {
            return Err(ImageError::TooLarge { height, width, channels });
        }
        let (mut scale, mut bias) = ([0.0; CHANNELS_MAX], [0.0; CHANNELS_MAX]);
        for (channel, (&mean, &std)) in mean.iter().zip(std).enumerate() {
            scale[channel] = (1.0 / (255.0 * f64::from(std))) as f32;
            bias[channel] = (-f64::from(mean) / f64::from(std)) as f32;
            let most = scale[channel].mul_add(255.0, bias[channel]);
            let finite = bias[channel].is_finite() && most.is_finite();
            if !(std > 0.0 && scale[channel].is_normal() && finite) {
                return Err(ImageError::Numbers { channel, mean, std });
            }
        }
        Ok(ImageSpec { pixels: pixels as u32, channels: channels as u32, scale, bias, to, layout })
    }

    /// Pixels of one picture.
    pub fn pixels(&self) -> u32 {
        self.pixels
    }

    /// Channels of one pixel, 1 to 4.
    pub fn channels(&self) -> u32 {
        self.channels
    }

    /// What a byte of each channel is multiplied by.
    pub fn scale(&self) -> [f32; CHANNELS_MAX] {
        self.scale
    }

    /// What is added to it then, in the same operation.
    pub fn bias(&self) -> [f32; CHANNELS_MAX] {
        self.bias
    }

    /// The format of the numbers.
    pub fn to(&self) -> Float {
        self.to
    }

    /// Where channels lie in a batch.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How many bytes a picture takes.
    pub fn picture_bytes(&self) -> usize {
        self.pixels as usize * self.channels as usize
    }

    /// How many bytes the numbers of a picture take.
    pub fn batch_bytes(&self) -> usize {
        self.picture_bytes() * self.to.bytes()
    }

    /// What each byte of each channel becomes, in the lowest bits.
    fn table(&self) -> [[u32; 256]; CHANNELS_MAX] {
        let mut table = [[0; 256]; CHANNELS_MAX];
        for (channel, numbers) in table.iter_mut().enumerate().take(self.channels as usize) {
            for (byte, number) in numbers.iter_mut().enumerate() {
                let value = (byte as f32).mul_add(self.scale[channel], self.bias[channel]);
                *number = match self.to {
                    Float::F32 => value.to_bits(),
                    Float::F16 => u32::from(f16::from_f32(value).to_bits()),
                    Float::Bf16 => u32::from(bf16::from_f32(value).to_bits()),
                };
            }
        }
        table
    }
}

/// Puts the numbers of the pictures in `parts` to the start of `into`, one picture after another,
/// and returns how many bytes that was. A part is any number of pictures.
///
/// # Panics
/// If they do not fit, or a part is no whole number of pictures.
///
/// # Safety
/// Every part is readable and `into` is writable for its length; `into` overlaps none of the parts,
/// and no other thread of this process writes to any of them meanwhile.
pub unsafe fn gather_image(parts: &[Part], into: Part, spec: &ImageSpec) -> u64 {
    let table = spec.table();
    let mut filled = 0usize;
    for part in parts {
        let pictures = part.bytes / spec.picture_bytes();
        assert!(part.bytes.is_multiple_of(spec.picture_bytes()), "a part of broken pictures");
        assert!(pictures <= (into.bytes - filled) / spec.batch_bytes(), "the parts do not fit");
        for picture in 0..pictures {
            // SAFETY: readable, writable and apart by the contract; inside `into` by the assert.
            unsafe {
                let from = part.data.as_ptr().add(picture * spec.picture_bytes());
                let to = into.data.as_ptr().add(filled);
                match spec.to {
                    Float::F32 => normalise(spec, &table, from, to.cast::<u32>(), |it| it),
                    Float::F16 | Float::Bf16 => {
                        normalise(spec, &table, from, to.cast::<u16>(), |it| it as u16);
                    }
                }
            }
            filled += spec.batch_bytes();
        }
    }
    filled as u64
}

/// Looks up every byte of one picture.
///
/// # Safety
/// A picture is readable at `from` and its numbers are writable at `to`, at any alignment, and they
/// do not overlap.
unsafe fn normalise<Number>(
    spec: &ImageSpec,
    table: &[[u32; 256]; CHANNELS_MAX],
    from: *const u8,
    to: *mut Number,
    number: fn(u32) -> Number,
) {
    let (pixels, channels) = (spec.pixels as usize, spec.channels as usize);
    let (pixel_step, channel_step) = match spec.layout {
        Layout::Planes => (1, pixels),
        Layout::ChannelsLast => (channels, 1),
    };
    let mut bytes = [0; RUN * CHANNELS_MAX];
    for first in (0..pixels).step_by(RUN) {
        let run = &mut bytes[..RUN.min(pixels - first) * channels];
        // SAFETY: these pixels are inside the picture.
        unsafe {
            ptr::copy_nonoverlapping(from.add(first * channels), run.as_mut_ptr(), run.len())
        };
        for (channel, numbers) in table.iter().enumerate().take(channels) {
            for (pixel, bytes) in run.chunks_exact(channels).enumerate() {
                let place = (first + pixel) * pixel_step + channel * channel_step;
                // SAFETY: place is below pixels * channels.
                unsafe { to.add(place).write_unaligned(number(numbers[bytes[channel] as usize])) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(size: (u32, u32), mean: &[f32], std: &[f32]) -> Result<ImageSpec, ImageError> {
        ImageSpec::new(size, mean, std, Float::F32, Layout::Planes)
    }

    #[test]
    fn sizes_follow() {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let it = ImageSpec::new((224, 224), &mean, &std, Float::F16, Layout::ChannelsLast).unwrap();
        assert_eq!((it.picture_bytes(), it.batch_bytes()), (150_528, 301_056));
        assert_eq!((it.pixels(), it.channels(), it.to()), (50_176, 3, Float::F16));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |size, mean: &[f32], std: &[f32]| {
            spec(size, mean, std).expect_err("it makes no sense").to_string()
        };
        assert_eq!(refused((0, 5), &[0.0], &[1.0]), "a picture of 0 x 5 pixels has no pixels");
        assert_eq!(
            refused((1 << 15, 1 << 15), &[0.0; 2], &[1.0; 2]),
            "a picture of 32768 x 32768 pixels of 2 channels is over 1073741824 bytes"
        );
        let channels = "means and";
        assert!(refused((1, 1), &[], &[]).contains(channels));
        assert!(refused((1, 1), &[0.0; 5], &[1.0; 5]).contains(channels));
        assert!(refused((1, 1), &[0.0; 3], &[1.0; 2]).starts_with("3 means and 2 standard"));
        for (mean, std) in [
            (0.0, 0.0),
            (0.0, -1.0),
            (0.0, f32::NAN),
            (f32::NAN, 1.0),
            (f32::INFINITY, 1.0),
            (0.0, f32::INFINITY),
            (0.0, 1e-42),
            (1e38, 1e-3),
        ] {
            let text = refused((1, 1), &[0.5, mean], &[0.5, std]);
            assert!(text.starts_with("channel 1: mean"), "{text}");
        }
        assert!(spec((1, 1), &[0.0], &[1.0]).is_ok());
        assert!(spec((16_384, 16_384), &[0.0; 4], &[1.0; 4]).is_ok());
    }
}
