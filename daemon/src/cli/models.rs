//! `gpuletctl models`: what the daemon serves.

use std::path::Path;

use clap::Args;
use gpulet_abi::tensor::Dtype;
use gpulet_client::{ModelSpec, Options, Session, TensorSpec};
use serde_json::{Value, json};

use super::status::{count, list, number, text_of};
use super::table::{duration, table};
use super::{CtlError, Output, control, print, print_json};

/// Show the daemon's models with their inputs and outputs
#[derive(Debug, Args)]
pub(super) struct Models {
    #[command(flatten)]
    output: Output,
}

impl Models {
    pub(super) fn run(&self, socket: Option<&Path>) -> Result<(), CtlError> {
        let state = control::state(socket)?;
        let options =
            Options { socket: socket.map(Path::to_owned), slot_bytes: 1, ..Options::default() };
        let mut session = match Session::open(&options.slots(1)) {
            Ok(session) => Some(session),
            Err(error) => {
                eprintln!("gpuletctl: inputs and outputs are not known: {error}");
                None
            }
        };
        let mut spec = |name: &str| session.as_mut().and_then(|it| it.model_open(name).ok());
        let models: Vec<(&Value, Option<ModelSpec>)> = list(&state["models"])
            .iter()
            .filter(|model| model["state"] != "retired")
            .map(|model| (model, spec(model["name"].as_str().unwrap_or_default())))
            .collect();
        if self.output.json {
            return print_json(
                &models.iter().map(|(it, spec)| entry(it, spec)).collect::<Vec<_>>(),
            );
        }
        print(&show(&models))
    }
}

fn show(models: &[(&Value, Option<ModelSpec>)]) -> String {
    if models.is_empty() {
        return "no models\n".to_owned();
    }
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|(model, spec)| {
            let side = |tensors: Option<&[TensorSpec]>| match tensors {
                Some(tensors) => tensors.iter().map(tensor).collect::<Vec<_>>().join(", "),
                None => "-".to_owned(),
            };
            vec![
                text_of(&model["name"]),
                text_of(&model["state"]),
                count(&model["max_batch"]),
                duration(number(&model["slo_ns"])),
                side(spec.as_ref().and_then(ModelSpec::inputs)),
                side(spec.as_ref().and_then(ModelSpec::outputs)),
            ]
        })
        .collect();
    let mut text = table(&["model", "state", "max batch", "slo", "inputs", "outputs"], &rows);
    for (model, _) in models {
        if let Some(error) = model["error"].as_str() {
            text.push_str(&format!("\n{}: {error}\n", text_of(&model["name"])));
        }
    }
    text
}

fn tensor(spec: &TensorSpec) -> String {
    let dtype = spec.dtype().map_or("?", Dtype::name);
    format!("{} {dtype} {:?}", name(spec), spec.dims().unwrap_or_default())
}

pub(super) fn name(spec: &TensorSpec) -> &str {
    gpulet_abi::layout::get_text(&spec.name).unwrap_or("?")
}

fn entry(model: &Value, spec: &Option<ModelSpec>) -> Value {
    let side = |tensors: Option<&[TensorSpec]>| -> Value {
        let tensor = |spec: &TensorSpec| {
            json!({
                "name": name(spec),
                "dtype": spec.dtype().map(Dtype::name),
                "shape": spec.dims(),
                "row_bytes": spec.row_bytes,
            })
        };
        tensors.map(|tensors| tensors.iter().map(tensor).collect::<Vec<_>>()).into()
    };
    json!({
        "name": model["name"],
        "state": model["state"],
        "error": model["error"],
        "max_batch": model["max_batch"],
        "slo_ns": model["slo_ns"],
        "inputs": side(spec.as_ref().and_then(ModelSpec::inputs)),
        "outputs": side(spec.as_ref().and_then(ModelSpec::outputs)),
    })
}
