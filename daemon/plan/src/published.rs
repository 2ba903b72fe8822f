//! The published file formats: rates, latencies, utilisations, configurations, placements.
//!
//! Every reader is a pure function of a file's name (for its errors) and text.

mod configs;
mod placements;
mod problem;
mod tables;

pub use configs::{
    DeviceFiles, InputShapes, Memory, Scheduling, devices, input_shapes, memory, scheduling,
};
pub use placements::{EMPTY, place, placements};
pub use problem::{DeviceTexts, Texts, problem};
pub use tables::{batching_costs, constants, latencies, rates, trace, utilisations};

/// How long it takes to gather a batch of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gathering {
    /// As long for every batch, ms.
    Fixed(f64),
    /// A factor on the measured times of an input shape, given by the stem of their file.
    Measured(&'static str, f64),
}

/// A model that the published files know by number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// Its name in latency files.
    pub profile: &'static str,
    /// Gathering its batches.
    pub gathering: Gathering,
}

/// Stem of the file with gathering times of 224 x 224 images.
pub const IMAGES_224: &str = "3_224_224";
/// Stem of the file with gathering times of 300 x 300 images.
pub const IMAGES_300: &str = "3_300_300";

const fn lenet(name: &'static str) -> Known {
    Known { name, profile: "lenet1", gathering: Gathering::Fixed(0.4) }
}

const fn image(name: &'static str) -> Known {
    Known { name, profile: name, gathering: Gathering::Measured(IMAGES_224, 1.9) }
}

/// The models in the order of their numbers.
pub const MODELS: [Known; 14] = [
    lenet("lenet1"),
    lenet("lenet2"),
    lenet("lenet3"),
    lenet("lenet4"),
    lenet("lenet5"),
    lenet("lenet6"),
    image("googlenet"),
    image("resnet50"),
    Known {
        name: "ssd-mobilenetv1",
        profile: "ssd-mobilenetv1",
        gathering: Gathering::Measured(IMAGES_300, 2.5),
    },
    image("vgg16"),
    image("mnasnet1_0"),
    image("mobilenet_v2"),
    image("densenet161"),
    Known { name: "bert", profile: "bert", gathering: Gathering::Fixed(1.0) },
];

/// Largest batch of the published tools.
pub const BATCH_MAX: u32 = 32;
/// Memory of a context, MB.
pub const CONTEXT_MB: u64 = 1230;
