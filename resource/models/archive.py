"""Writes one model folder: model.pt (TorchScript) and model.toml, each whole or not at all."""

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

TORCH_DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "u8": torch.uint8,
    "bool": torch.bool,
}
TRACE_ROWS = 2
CHECK_ROWS = (1, 5)


class ModelError(Exception):
    """A model that cannot be exported; the message says which and why."""


@dataclass(frozen=True)
class Tensor:
    """One declared input or output; shape[0] is -1, the batch dimension.

    range: lowest and highest value of an input of i64 or i32, where not all of them are allowed.
    """

    name: str
    dtype: str
    shape: tuple
    range: tuple = None


@dataclass(frozen=True)
class Settings:
    """What model.toml says besides its tensors. slo_ms: one request's relative SLO."""

    slo_ms: float
    max_batch: int = 32
    warmup_count: int = 3


def rows_of(output):
    """The outputs of a forward as a tuple, whether it returned one tensor or several."""
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def trace(module, sample):
    """Traces module in eval mode at two rows and proves that one and five rows work as well.

    sample(rows) returns the tuple of input tensors for that many rows. Raises ModelError when
    the trace disagrees with the module, as it does when a batch size was baked in.
    """
    module = module.eval().requires_grad_(False)
    with torch.no_grad():
        traced = torch.jit.trace(module, sample(TRACE_ROWS), check_trace=False)
        for rows in CHECK_ROWS:
            inputs = sample(rows)
            for got, want in zip(rows_of(traced(*inputs)), rows_of(module(*inputs))):
                if got.shape != want.shape:
                    raise ModelError(f"traced output at {rows} rows has shape {tuple(got.shape)},"
                                     f" the module's has {tuple(want.shape)}")
                if not torch.allclose(got, want, rtol=1e-3, atol=1e-4):
                    raise ModelError(f"traced output at {rows} rows differs from the module's by"
                                     f" {(got - want).abs().max().item():.3g}")
    return traced


def write_model(folder, traced):
    """Writes traced to folder/model.pt.

    The tracer's debug records are left out: they hold the paths of the exporting machine, so the
    same model would be another file on another machine. Loaders treat them as optional.
    """
    whole = io.BytesIO()
    torch.jit.save(traced, whole)
    whole.seek(0)
    reader = torch._C.PyTorchFileReader(whole)
    kept = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(kept)
    for name in reader.get_all_records():
        # The writer adds `version` itself when it closes the archive.
        if not name.endswith(".debug_pkl") and name != "version":
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    replace(folder / "model.pt", kept.getvalue())


def write_settings(folder, settings, inputs, outputs):
    """Writes folder/model.toml unless it already says the same."""
    lines = [
        'file = "model.pt"',
        f"slo_ms = {float(settings.slo_ms)!r}",
        f"max_batch = {settings.max_batch}",
        f"warmup_count = {settings.warmup_count}",
    ]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            shape = ", ".join(str(extent) for extent in tensor.shape)
            lines += [
                "",
                f"[[{kind}]]",
                f'name = "{tensor.name}"',
                f'dtype = "{tensor.dtype}"',
                f"shape = [{shape}]",
            ]
            if tensor.range:
                lines.append(f"range = [{tensor.range[0]}, {tensor.range[1]}]")
    text = "\n".join(lines) + "\n"
    path = folder / "model.toml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        replace(path, text.encode("utf-8"))


def is_complete(folder):
    """Whether folder holds a whole model.pt: a cut-off archive has no central directory."""
    path = folder / "model.pt"
    return path.is_file() and zipfile.is_zipfile(path)


def replace(path, content):
    """Puts content at path in one step, so that a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
