//! The models that were opened in a session: what a claim needs to know of them, and no more.

use gpulet_abi::layout::{ModelSpec, TensorSpec};
use gpulet_abi::tensor::SlotLayout;

/// Models that one session can have open.
pub(crate) const MODELS_MAX: usize = 1024;

/// One model. Its spec was found to be consistent.
#[derive(Debug)]
pub(crate) struct Model {
    spec: Box<ModelSpec>,
    /// The most rows that fit a slot of this session, at most `max_batch`.
    fitting_rows: u32,
}

impl Model {
    /// Keeps `spec`; `None` if it contradicts itself.
    pub(crate) fn new(spec: &ModelSpec, slot_bytes: u64) -> Option<Model> {
        if !spec.is_consistent() {
            return None;
        }
        // Layouts grow with their rows, so the border can be searched for by halves.
        let fits =
            |rows| SlotLayout::of_spec(spec, rows).is_some_and(|it| it.bytes() <= slot_bytes);
        let (mut fitting, mut beyond) = (0, u64::from(spec.max_batch) + 1);
        while fitting + 1 < beyond {
            let middle = fitting + (beyond - fitting) / 2;
            if fits(middle as u32) { fitting = middle } else { beyond = middle }
        }
        Some(Model { spec: Box::new(*spec), fitting_rows: fitting as u32 })
    }

    #[inline]
    pub(crate) fn max_batch(&self) -> u32 {
        self.spec.max_batch
    }

    #[inline]
    pub(crate) fn fitting_rows(&self) -> u32 {
        self.fitting_rows
    }

    pub(crate) fn inputs(&self) -> &[TensorSpec] {
        self.spec.inputs().unwrap_or_default()
    }

    pub(crate) fn outputs(&self) -> &[TensorSpec] {
        self.spec.outputs().unwrap_or_default()
    }

    /// Where the tensors of `rows` rows lie; `None` beyond `max_batch`.
    pub(crate) fn layout(&self, rows: u32) -> Option<SlotLayout> {
        if rows > self.spec.max_batch {
            return None;
        }
        SlotLayout::of_spec(&self.spec, rows)
    }

    /// Whether a slot laid out for one is laid out for the other too.
    fn same_tensors(&self, spec: &ModelSpec) -> bool {
        let rows = |spec: &ModelSpec| {
            let of = |tensors: Option<&[TensorSpec]>| {
                tensors.unwrap_or_default().iter().map(|it| (it.dtype, it.rank, it.dims)).collect()
            };
            let both: (Vec<_>, Vec<_>) = (of(spec.inputs()), of(spec.outputs()));
            both
        };
        rows(&self.spec) == rows(spec)
    }
}

/// All models of a session, by the daemon's number.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    numbers: Vec<u32>,
    models: Vec<Model>,
}

impl Catalog {
    /// Adds a model, or takes a newer description of one. An error names the broken rule.
    pub(crate) fn put(&mut self, spec: &ModelSpec, slot_bytes: u64) -> Result<(), &'static str> {
        let model = Model::new(spec, slot_bytes).ok_or("a model spec that contradicts itself")?;
        match self.find(spec.model) {
            // Requests in flight were laid out by the older description.
            Some(known) if !known.same_tensors(spec) => {
                Err("another model under the number of one that is open")
            }
            Some(_) => {
                let place = self.numbers.iter().position(|number| *number == spec.model);
                if let Some(place) = place {
                    self.models[place] = model;
                }
                Ok(())
            }
            None if self.models.len() == MODELS_MAX => Err("more models than a session can have"),
            None => {
                self.numbers.push(spec.model);
                self.models.push(model);
                Ok(())
            }
        }
    }

    #[inline]
    pub(crate) fn find(&self, number: u32) -> Option<&Model> {
        let place = self.numbers.iter().position(|known| *known == number)?;
        self.models.get(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    fn spec(number: u32, row_bytes: u64, max_batch: u32) -> ModelSpec {
        let mut spec = ModelSpec::zeroed();
        (spec.model, spec.max_batch, spec.input_count, spec.output_count) =
            (number, max_batch, 1, 1);
        for tensor in [&mut spec.inputs[0], &mut spec.outputs[0]] {
            (tensor.dtype, tensor.rank, tensor.row_bytes) = (1, 2, row_bytes);
            (tensor.dims[0], tensor.dims[1]) = (-1, row_bytes as i64 / 4);
        }
        spec
    }

    #[test]
    fn as_many_rows_fit_as_the_layout_says() {
        for slot_bytes in [0, 256, 511, 512, 1024, 4096, 1 << 40] {
            let model = Model::new(&spec(1, 256, 9), slot_bytes).unwrap();
            let fits = |rows| model.layout(rows).unwrap().bytes() <= slot_bytes;
            let expected = (1..=9).take_while(|rows| fits(*rows)).count() as u32;
            assert_eq!(model.fitting_rows(), expected, "{slot_bytes}");
        }
        assert!(Model::new(&spec(1, 256, u32::MAX), u64::MAX).unwrap().fitting_rows() == u32::MAX);
        assert!(Model::new(&spec(1, 257, 1), 1024).is_none());
    }

    #[test]
    fn a_number_keeps_its_tensors() {
        let mut catalog = Catalog::default();
        catalog.put(&spec(7, 256, 4), 1 << 20).unwrap();
        catalog.put(&spec(7, 256, 8), 1 << 20).unwrap();
        assert_eq!(catalog.find(7).unwrap().max_batch(), 8);
        assert!(catalog.put(&spec(7, 512, 8), 1 << 20).is_err());
        assert!(catalog.find(8).is_none());
        for number in 100..100 + MODELS_MAX as u32 - 1 {
            catalog.put(&spec(number, 256, 1), 1024).unwrap();
        }
        assert!(catalog.put(&spec(99, 256, 1), 1024).is_err());
    }
}
