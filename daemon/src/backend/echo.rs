//! `builtin:echo`: each output is a copy of the input of the same index.

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
            // SAFETY: views are valid for their length, and both have the same: `new` compared
            // types and dimensions, `check_views` the lengths that follow from them.
            unsafe { output.data().copy_from(input.data(), input.bytes()) };
            copied.output_bytes += output.bytes() as u64;
        }
        Ok(copied)
    }

    fn form(&self) -> String {
        "echo".to_owned()
    }
}
