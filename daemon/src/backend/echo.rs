//! `builtin:echo`: each output is a copy of the input of the same index.

use gpulet_kernels::gather;

use super::{Copied, Instance, LoadError, RunError, View, check_views};
use crate::model::{Model, Tensor};

/// A model that answers what it was asked.
#[derive(Debug)]
pub struct Echo {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Echo {
    /// The echo of the inputs of `model`.
    ///
    /// # Errors
    /// [`LoadError::Model`] unless each output has the type and dimensions of the input of the same
    /// index.
    pub fn new(model: &Model) -> Result<Echo, LoadError> {
        let (inputs, outputs) = (&model.inputs, &model.outputs);
        if inputs.len() != outputs.len() {
            let rule = format!(
                "builtin:echo: {} outputs for {} inputs, there must be as many",
                outputs.len(),
                inputs.len()
            );
            return Err(LoadError::model(model, rule));
        }
        for (index, (input, output)) in inputs.iter().zip(outputs).enumerate() {
            if (input.dtype, &input.dims) != (output.dtype, &output.dims) {
                let rule = format!(
                    "builtin:echo: output {index} ({}) must have dtype and shape of input {index} \
                     ({})",
                    output.name, input.name
                );
                return Err(LoadError::model(model, rule));
            }
        }
        Ok(Echo { inputs: inputs.clone(), outputs: outputs.clone() })
    }
}

impl Instance for Echo {
    fn run(
        &mut self,
        rows: u32,
        inputs: &[View<'_>],
        outputs: &[View<'_>],
    ) -> Result<Copied, RunError> {
        check_views(&self.inputs, rows, inputs);
        check_views(&self.outputs, rows, outputs);
        let mut copied = Copied::default();
        for (input, output) in inputs.iter().zip(outputs) {
            // SAFETY: views are valid for their length, and tensors of a batch do not overlap.
            copied.output_bytes += unsafe { gather(&[input.part()], output.part()) };
        }
        Ok(copied)
    }

    fn form(&self) -> String {
        "echo".to_owned()
    }
}
