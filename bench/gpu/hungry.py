#!/usr/bin/env python3
"""A model that takes as much memory as it is told: hungry.py FOLDER

Its one input says how many MiB a batch takes besides. Used to see what becomes of a batch that does not
fit, and of those beside it.
"""
import pathlib
import sys

import torch

MODEL_TOML = """\
file = "model.pt"
slo_ms = 60000.0
max_batch = 1
warmup_count = 1

[[input]]
name = "mib"
dtype = "i64"
shape = [-1, 1]
range = [0, 2097152]

[[output]]
name = "sum"
dtype = "f32"
shape = [-1, 1]
"""


class Hungry(torch.nn.Module):
    def forward(self, mib: torch.Tensor) -> torch.Tensor:
        count = int(mib.max().item())
        taken = torch.zeros([count, 262144], dtype=torch.float32, device=mib.device)
        return mib.to(torch.float32) + taken.sum()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.script(Hungry().eval()).save(str(folder / "model.pt"))
    (folder / "model.toml").write_text(MODEL_TOML)


if __name__ == "__main__":
    main()
