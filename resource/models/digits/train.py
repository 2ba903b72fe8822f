#!/usr/bin/python3
"""Trains the digits model and writes model.pt, model.toml and held-out.bin beside this file.

Needs Debian's python3-torch and python3-sklearn (for its 1797 handwritten 8x8 digits). About half
a minute on one core; seeds, order and thread count are fixed, so a run on the same processor and
library versions writes the same bytes again. The held-out digits are drawn before training and
nothing is chosen by looking at them: the last epoch's weights are what is kept.
"""

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

try:
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    sys.exit(f"train.py: {error}; install python3-torch and python3-sklearn and run this with"
             " /usr/bin/python3")

import archive  # noqa: E402

SEED = 20
HELD_OUT_PER_DIGIT = 36
EPOCH_COUNT = 60
BATCH_ROWS = 32
PEAK_RATE = 4e-3
INPUTS = (archive.Tensor("image", "f32", (-1, 1, 8, 8)),)
OUTPUTS = (archive.Tensor("logits", "f32", (-1, 10)),)


class Digits(nn.Module):
    """LeNet's shape at 8x8: three 3x3 convolutions, two poolings, two linear layers.

    Takes f32 [-1, 1, 8, 8] pixels in 0..1, gives f32 [-1, 10] logits.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.dropout = nn.Dropout(0.25)
        self.hidden = nn.Linear(128, 64)
        self.logits = nn.Linear(64, 10)

    def forward(self, image):
        x = functional.relu(self.conv1(image))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv3(x)), 2)
        x = functional.relu(self.hidden(self.dropout(x.flatten(1))))
        return self.logits(x)


def split(images, labels):
    """Splits into training and held-out rows, HELD_OUT_PER_DIGIT of each digit held out."""
    order = np.random.RandomState(SEED).permutation(len(labels))
    held = np.concatenate([order[labels[order] == digit][:HELD_OUT_PER_DIGIT]
                           for digit in range(10)])
    held = np.random.RandomState(SEED + 1).permutation(held)
    held_bytes = {images[row].tobytes() for row in held}
    # A digit that equals a held-out one, pixel for pixel, would have been seen in training.
    training = [row for row in order
                if row not in set(held) and images[row].tobytes() not in held_bytes]
    return training, held


def shifted(images, generator):
    """Each image moved by -1..1 pixels both ways, zeros coming in, and a little noise added."""
    padded = functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    moved = torch.stack([image[:, y:y + 8, x:x + 8]
                         for image, (y, x) in zip(padded, moves.tolist())])
    noise = torch.randn(moved.shape, generator=generator) * 0.05
    return (moved + noise).clamp(0.0, 1.0)


def train(images, labels):
    """Trains a Digits on f32 [n, 1, 8, 8] images and i64 [n] labels and returns it."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = Digits().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    batch_count = (len(images) + BATCH_ROWS - 1) // BATCH_ROWS
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, total_steps=EPOCH_COUNT * batch_count)
    for epoch in range(EPOCH_COUNT):
        loss_sum = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH_ROWS):
            loss = functional.cross_entropy(model(shifted(images[rows], generator)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            loss_sum += loss.item() * len(rows)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}: mean loss {loss_sum / len(images):.4f}", flush=True)
    return model.eval()


def write_held_out(path, images, labels):
    """Writes images (f32 [n, 64], 0..1) and labels in the format that README.md describes."""
    record = np.dtype([("pixels", "<f4", (64,)), ("label", "<u4")])
    records = np.zeros(len(labels), dtype=record)
    records["pixels"] = images
    records["label"] = labels
    archive.replace(path, np.uint32(len(labels)).astype("<u4").tobytes() + records.tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write (default: here)")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    data = load_digits()
    images = (data.data / 16.0).astype(np.float32)
    training, held = split(images, data.target)
    as_pixels = torch.from_numpy(images).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(data.target.astype(np.int64))
    model = train(as_pixels[training], labels[training])

    with torch.no_grad():
        right = (model(as_pixels[held]).argmax(1) == labels[held]).sum().item()
    print(f"held out: {right} of {len(held)} right ({100 * right / len(held):.2f} %),"
          f" trained on {len(training)}")

    generator = torch.Generator().manual_seed(SEED)
    traced = archive.trace(model, lambda rows: (torch.rand(rows, 1, 8, 8, generator=generator),))
    archive.write_model(out, traced)
    archive.write_settings(out, archive.Settings(slo_ms=50.0), INPUTS, OUTPUTS)
    write_held_out(out / "held-out.bin", images[held], data.target[held])
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
