#!/usr/bin/python3
"""Exports the models of the evaluation into DEST, one folder each with model.pt and model.toml.

Run with /usr/bin/python3 (Debian's python3-torch and python3-torchvision). Weights are random with
fixed seeds, but for crepe's, which pip fetches. What is already there and whole is kept; the
model.toml is rewritten when an option changes it. All ten take about 1.5 GB. Exit status: 0 all
there, 1 at least one failed, 2 bad arguments.
"""

import argparse
import sys
import time
import warnings
import zlib
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

try:
    import torch

    import archive
    import zoo
except ImportError as error:
    sys.exit(f"export.py: {error}; install python3-torch and python3-torchvision and run this"
             " with /usr/bin/python3")

DEFAULT_DEST = HERE.parent.parent / "target" / "models"
# A CPU core takes up to ten times a GPU's SLO for one forward (ssd); the rest is room to wait.
CPU_SLO_SCALE = 25.0


def export(name, recipe, folder):
    """Builds, traces, proves and writes one model. Raises ModelError, OSError, RuntimeError."""
    # Seeded by name, so that --only changes no model's weights.
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = zoo.with_statistics(recipe.build(), recipe, generator)
    traced = archive.trace(model, lambda rows: recipe.sample(rows, generator))
    archive.write_model(folder, traced)


def positive(convert):
    """An argparse type: a number above zero."""
    def parse(text):
        value = convert(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, is {text}")
        return value
    parse.__name__ = convert.__name__
    return parse


def arguments(names):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", nargs="?", type=Path, default=DEFAULT_DEST,
                        help="folder to write into (default: target/models of this repository)")
    parser.add_argument("--only", metavar="NAME,...",
                        help=f"just these models, of: {', '.join(names)}")
    parser.add_argument("--slo-scale", type=positive(float), default=CPU_SLO_SCALE, metavar="X",
                        help="factor on the GPU SLOs: 1 for a GPU, the default %(default)g for"
                             " one or two CPU cores")
    parser.add_argument("--max-batch", type=positive(int), default=32, metavar="ROWS",
                        help="max_batch to declare (default: %(default)s)")
    parser.add_argument("--warmup-count", type=positive(int), default=3, metavar="COUNT",
                        help="warmup_count to declare (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="export again what is there")
    given = parser.parse_args()
    given.only = [name for name in (given.only or "").split(",") if name] or list(names)
    unknown = [name for name in given.only if name not in names]
    if unknown:
        parser.error(f"--only: no model {', '.join(unknown)}; there are {', '.join(names)}")
    return given


def main():
    recipes = zoo.zoo()
    given = arguments(recipes)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    failed = []
    for number, name in enumerate(given.only, start=1):
        recipe, folder = recipes[name], given.dest / name
        progress = f"[{number}/{len(given.only)}] {name}"
        try:
            if archive.is_complete(folder) and not given.force:
                print(f"{progress}: kept, already in {folder}", flush=True)
            else:
                start = time.monotonic()
                print(f"{progress}: exporting", flush=True)
                export(name, recipe, folder)
                megabytes = (folder / "model.pt").stat().st_size / 1e6
                print(f"{progress}: {megabytes:.1f} MB in {time.monotonic() - start:.1f} s",
                      flush=True)
            settings = archive.Settings(
                recipe.gpu_slo_ms * given.slo_scale, given.max_batch, given.warmup_count)
            archive.write_settings(folder, settings, recipe.inputs, recipe.outputs)
        except (archive.ModelError, OSError, RuntimeError) as error:
            print(f"{progress}: FAILED: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    if failed:
        sys.exit(f"export.py: {len(failed)} of {len(given.only)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
