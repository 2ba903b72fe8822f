#!/usr/bin/python3
"""Checks model folders: model.toml's form, and that model.pt does what model.toml says.

Every model: loads, gives the declared shapes and dtypes at 1, 2 and 5 rows, a row's answer does not
depend on its batch, answers differ from input to input, nothing ties it to the CPU. Besides,
digits reads its held-out digits and crepe hears tones. Run with /usr/bin/python3. Exit status: 0
all good, 1 at least one failed, 2 bad arguments.
"""

import argparse
import struct
import sys
import time
import tomllib
import zlib
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

try:
    import torch

    import crepe
    import zoo
    from archive import TORCH_DTYPES, ModelError, Tensor, rows_of
except ImportError as error:
    sys.exit(f"check.py: {error}; install python3-torch and python3-torchvision and run this"
             " with /usr/bin/python3")

DEFAULT_FOLDERS = (HERE, HERE.parent.parent / "target" / "models")
KEYS = {"slo_ms": float, "max_batch": int, "warmup_count": int,
        "input": list, "output": list}
OPTIONS = {"precision": str, "error_max": float}
TENSOR_KEYS = {"name": str, "dtype": str, "shape": list}
INPUT_OPTIONS = {"range": list, "normalise": dict}
ROW_COUNTS = (1, 2, 5)
LEAST_DEVIATION = 1e-3
LEAST_ACCURACY = 0.97
LEAST_HELD_OUT = 300
TONES_HZ = (220.0, 440.0, 880.0)
TONE_ERROR_HZ = 3.0


def require(holds, message):
    """Raises ModelError with message unless holds."""
    if not holds:
        raise ModelError(message)


def check_keys(table, keys, where, options=None):
    """Exactly these keys, and any of the options, each of its type."""
    options = options or {}
    require(set(table) - set(options) == set(keys),
            f"{where}: keys are {sorted(table)}, must be {sorted(keys)}")
    for key, kind in {**keys, **options}.items():
        require(key not in table or type(table[key]) is kind,
                f"{where}: {key} must be a {kind.__name__}, is {table.get(key)!r}")


def read_settings(path):
    """model.toml's inputs and outputs as the model sees them, and its model file's path, None for a
    builtin."""
    with open(path, "rb") as file:
        table = tomllib.load(file)
    source = "builtin" if "builtin" in table else "file"
    check_keys(table, {source: str, **KEYS}, path.name, OPTIONS)
    for key in ("slo_ms", "max_batch", "warmup_count"):
        require(table[key] > 0, f"{path.name}: {key} must be above 0, is {table[key]}")
    kinds = []
    for kind in ("input", "output"):
        require(table[kind], f"{path.name}: no {kind}")
        tensors = []
        for index, entry in enumerate(table[kind]):
            where = f"{path.name}: {kind}[{index}]"
            check_keys(entry, TENSOR_KEYS, where, INPUT_OPTIONS if kind == "input" else None)
            shape = entry["shape"]
            bounds = entry.get("range", [0, 0])
            require(len(bounds) == 2 and all(type(bound) is int for bound in bounds)
                    and bounds[0] <= bounds[1],
                    f"{where}: range must be a lowest and a highest value, is {bounds}")
            require(entry["dtype"] in TORCH_DTYPES, f"{where}: unknown dtype {entry['dtype']!r}")
            require(shape[:1] == [-1] and all(type(extent) is int and extent > 0
                                              for extent in shape[1:]),
                    f"{where}: shape must be -1 and then positive extents, is {shape}")
            if "normalise" in entry:
                require(entry["dtype"] == "u8" and len(shape) == 4,
                        f"{where}: normalise must be on u8 of shape [-1, H, W, C]")
                rows, height, width, channels = shape
                entry["dtype"], shape = "f32", [rows, channels, height, width]
            tensors.append(Tensor(entry["name"], entry["dtype"], tuple(shape),
                                  tuple(bounds) if "range" in entry else None))
        kinds.append(tuple(tensors))
    return kinds[0], kinds[1], path.parent / table["file"] if source == "file" else None


def check_outputs(outputs, declared, rows):
    """Shapes, dtypes and finiteness of one forward's outputs."""
    require(len(outputs) == len(declared), f"{len(outputs)} outputs, {len(declared)} declared")
    for output, tensor in zip(outputs, declared):
        want = (rows, *tensor.shape[1:])
        require(tuple(output.shape) == want,
                f"output {tensor.name} at {rows} rows: shape {tuple(output.shape)}, must be {want}")
        require(output.dtype == TORCH_DTYPES[tensor.dtype],
                f"output {tensor.name}: dtype {output.dtype}, must be {tensor.dtype}")
        require(bool(torch.isfinite(output.float()).all()), f"output {tensor.name}: not finite")


def check_answers(model, inputs, outputs):
    """Runs one set of rows whole, in part and one by one; the answers must be the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(b"check"))
    most = max(ROW_COUNTS)
    sample = tuple(zoo.sample_of(tensor, most, generator) for tensor in inputs)
    whole = rows_of(model(*sample))
    check_outputs(whole, outputs, most)
    for rows in ROW_COUNTS:
        for first in range(0, most - rows + 1, rows):
            part = rows_of(model(*(tensor[first:first + rows] for tensor in sample)))
            check_outputs(part, outputs, rows)
            for got, want, tensor in zip(part, whole, outputs):
                want = want[first:first + rows]
                bound = 1e-4 * max(1.0, float(want.abs().max()))
                error = float((got - want).abs().max())
                require(error <= bound, f"output {tensor.name}: rows {first}..{first + rows - 1}"
                                        f" alone differ by {error:.3g} from the batch of {most}")
    for output, tensor in zip(whole, outputs):
        spread = float(output.float().std())
        require(spread > LEAST_DEVIATION, f"output {tensor.name}: deviation {spread:.3g},"
                                          f" must be above {LEAST_DEVIATION}")
        # Tells apart a model that answers from one that gives its biases to every input.
        between = float(output.float().std(0).max())
        require(between > LEAST_DEVIATION, f"output {tensor.name}: deviation between inputs"
                                           f" {between:.3g}, must be above {LEAST_DEVIATION}")


def check_digits(model, folder):
    """The share of held-out.bin's digits that come out right."""
    path = folder / "held-out.bin"
    content = path.read_bytes()
    count = struct.unpack_from("<I", content)[0]
    record = struct.Struct("<64fI")
    require(count >= LEAST_HELD_OUT, f"{path.name}: {count} digits, must be {LEAST_HELD_OUT}")
    require(len(content) == 4 + count * record.size,
            f"{path.name}: {len(content)} bytes for {count} digits")
    digits = [record.unpack_from(content, 4 + row * record.size) for row in range(count)]
    images = torch.tensor([digit[:64] for digit in digits]).reshape(-1, 1, 8, 8)
    require(bool((images >= 0).all() and (images <= 1).all()), f"{path.name}: pixel out of 0..1")
    right = sum(int(guess) == digit[64] for guess, digit in zip(model(images).argmax(1), digits))
    require(right >= LEAST_ACCURACY * count, f"{right} of {count} held-out digits right,"
                                             f" must be {100 * LEAST_ACCURACY:g} %")
    return f"{right} of {count} held-out digits right"


def check_tones(model):
    """Pitches heard in made tones, at more than one phase and loudness."""
    heard = []
    for frequency in TONES_HZ:
        for phase, gain in ((0.0, 0.5), (1.0, 0.01), (2.0, 1.0)):
            frame = crepe.tone(frequency, phase, gain).unsqueeze(0)
            pitch = crepe.decode_hz(model(frame)[0])
            require(abs(pitch - frequency) <= TONE_ERROR_HZ, f"{frequency} Hz heard as"
                                                             f" {pitch:.1f} Hz")
        heard.append(f"{frequency:g} Hz as {pitch:.1f}")
    silence = model(torch.zeros(1, crepe.FRAME_SAMPLES))
    require(float(silence.max()) < 0.5, "a pitch heard in silence")
    return "heard " + ", ".join(heard)


def check_folder(folder):
    """Checks one model folder; returns a line about it or raises what is wrong."""
    inputs, outputs, path = read_settings(folder / "model.toml")
    if path is None:
        return "built in"
    require(path.is_file(), f"model.toml: file {path.name} does not exist")
    model = torch.jit.load(str(path), map_location="cpu").eval()
    # A device written into the graph would fail, or copy to the host, on a GPU.
    require("Device = prim::Constant" not in str(model.inlined_graph),
            "the graph names a device")
    with torch.no_grad():
        check_answers(model, inputs, outputs)
        generator = torch.Generator().manual_seed(1)
        row = tuple(zoo.sample_of(tensor, 1, generator) for tensor in inputs)
        start = time.monotonic()
        model(*row)
        line = f"one row {1000 * (time.monotonic() - start):.1f} ms"
        if folder.name == "digits":
            line += ", " + check_digits(model, folder)
        if folder.name == "crepe":
            line += ", " + check_tones(model)
    return line


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="*", type=Path, help="folders that hold model folders"
                        " (default: this one and target/models where there is one)")
    given = parser.parse_args()
    roots = given.dir or [root for root in DEFAULT_FOLDERS if root.is_dir()]
    failed = 0
    for root in roots:
        folders = sorted(path.parent for path in root.glob("*/model.toml"))
        if not folders:
            parser.error(f"{root} holds no model folder")
        for folder in folders:
            try:
                print(f"{folder.name}: {check_folder(folder)}", flush=True)
            except (ModelError, OSError, RuntimeError, ValueError, struct.error) as error:
                print(f"{folder.name}: FAILED: {error}", file=sys.stderr, flush=True)
                failed += 1
    if failed:
        sys.exit(f"check.py: {failed} failed")


if __name__ == "__main__":
    main()
