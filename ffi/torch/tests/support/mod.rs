//! What the tests share: one opened libtorch, and models made without Python.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{self, Write};
use std::sync::Once;

use gpulet_torch::{Module, Options, TensorMut, TensorRef, Torch};

/// Set to 1 where a machine must have libtorch: its absence is then a failure.
const REQUIRE_VARIABLE: &str = "GPULET_REQUIRE_TORCH";

/// The opened libtorch, or nothing (said loudly) where this machine has none.
pub fn torch() -> Option<Torch> {
    match Torch::open(&Options::default()) {
        Ok(torch) => Some(torch),
        Err(error) => {
            let required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1");
            assert!(!required, "{REQUIRE_VARIABLE}=1, but {error}");
            // Not by eprintln!, which is shown only for a test that fails.
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let _ = writeln!(io::stderr(), "SKIP: every test that runs a model: {error}");
            });
            None
        }
    }
}

/// Numbers in -1..1 that are the same on every machine and of every libtorch.
pub fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A module of float buffers, each `(name, shape)`, filled from [`numbers`] and scaled by fan-in.
pub fn define(torch: &Torch, source: &str, shapes: &[(&str, &[usize])]) -> Module {
    let mut values: Vec<Vec<f32>> = Vec::new();
    for (seed, (_, dims)) in shapes.iter().enumerate() {
        let fan_in: usize = dims[1..].iter().product();
        let scale = 1.0 / (fan_in as f32).sqrt();
        let count = dims.iter().product();
        values.push(numbers(seed as u32, count).iter().map(|x| x * scale).collect());
    }
    let buffers: Vec<_> = shapes
        .iter()
        .zip(&mut values)
        .map(|((name, dims), value)| (*name, TensorRef::from_slice(dims, value).unwrap()))
        .collect();
    Module::define(torch, source, &buffers, &[]).unwrap()
}

/// LeNet-5 on 28 x 28 images: the shape of a real, small convolutional model.
pub fn lenet(torch: &Torch) -> Module {
    let source = "
def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch.conv2d(x, self.w1, self.b1, [1, 1], [2, 2]))
    x = torch.max_pool2d(x, [2, 2])
    x = torch.relu(torch.conv2d(x, self.w2, self.b2))
    x = torch.max_pool2d(x, [2, 2]).flatten(1)
    x = torch.relu(torch.matmul(x, self.w3.t()) + self.b3)
    x = torch.relu(torch.matmul(x, self.w4.t()) + self.b4)
    return torch.matmul(x, self.w5.t()) + self.b5
";
    let shapes: [(&str, &[usize]); 10] = [
        ("w1", &[6, 1, 5, 5]),
        ("b1", &[6]),
        ("w2", &[16, 6, 5, 5]),
        ("b2", &[16]),
        ("w3", &[120, 400]),
        ("b3", &[120]),
        ("w4", &[84, 120]),
        ("b4", &[84]),
        ("w5", &[10, 84]),
        ("b5", &[10]),
    ];
    define(torch, source, &shapes)
}

/// Two inputs, a tuple of two outputs, and an assert: all inputs need as many rows.
pub fn mlp(torch: &Torch) -> Module {
    let source = "
def forward(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor]:
    assert x.size(0) == y.size(0), 'x and y need as many rows'
    hidden = torch.tanh(torch.matmul(x, self.w1) + torch.matmul(y, self.w2))
    return hidden, torch.matmul(hidden, self.w3).argmax(1)
";
    define(torch, source, &[("w1", &[4, 8]), ("w2", &[3, 8]), ("w3", &[8, 5])])
}

/// A module of one method and no weights.
pub fn script(torch: &Torch, signature: &str, body: &str) -> Module {
    let source = format!("def forward(self, {signature}:\n    {body}\n");
    Module::define(torch, &source, &[], &[]).unwrap()
}

pub fn input<'a>(dims: &[usize], data: &'a mut [f32]) -> TensorRef<'a> {
    TensorRef::from_slice(dims, data).unwrap()
}

pub fn output<'a>(dims: &[usize], data: &'a mut [f32]) -> TensorMut<'a> {
    TensorMut::from_slice(dims, data).unwrap()
}
