"""The models that export.py writes: how each is built, what it takes and gives, its SLO."""

import math
from dataclasses import dataclass
from typing import Callable

import torch
import torchvision
from torch import nn
from torch.nn import functional

import crepe
from archive import Tensor

BERT_VOCABULARY = 30522
BERT_TOKENS = 14
STATISTICS_FORWARDS = 3
STATISTICS_ROWS = 4


class LeNet(nn.Module):
    """LeNet-5 at MNIST's size: f32 [-1, 1, 28, 28] to f32 [-1, 10] logits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(400, 120)
        self.linear2 = nn.Linear(120, 84)
        self.logits = nn.Linear(84, 10)

    def forward(self, image):
        x = functional.max_pool2d(torch.relu(self.conv1(image)), 2)
        x = functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.linear1(x.flatten(1)))
        return self.logits(torch.relu(self.linear2(x)))


class BertLayer(nn.Module):
    """One encoder layer: self-attention and a two-layer perceptron, each added and normalised."""

    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x):
        rows, tokens, width = x.shape
        split = self.query_key_value(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(rows, tokens, width)
        x = self.attended_norm(x + self.attended(mixed))
        return self.norm(x + self.down(functional.gelu(self.up(x))))


class Bert(nn.Module):
    """An encoder of BERT-base's sizes: i64 [-1, 14] token ids below BERT_VOCABULARY to
    f32 [-1, 14, 768] hidden states and f32 [-1, 768] pooled first tokens. No mask: all count.
    """

    def __init__(self, width=768, depth=12, heads=12, inner=3072):
        super().__init__()
        self.words = nn.Embedding(BERT_VOCABULARY, width)
        self.positions = nn.Parameter(torch.empty(BERT_TOKENS, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.Sequential(*[BertLayer(width, heads, inner) for _ in range(depth)])
        self.pooler = nn.Linear(width, width)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else 0.02)

    def forward(self, ids):
        hidden = self.layers(self.norm(self.words(ids) + self.positions))
        return hidden, torch.tanh(self.pooler(hidden[:, 0]))


class SsdHeads(nn.Module):
    """SSD300's backbone and heads, without its anchors and non-maximum suppression: the latter is
    an operator of torchvision that libtorch alone cannot load, and its output has no fixed shape.
    """

    def __init__(self):
        super().__init__()
        whole = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
        self.backbone = whole.backbone
        self.head = whole.head

    def forward(self, image):
        found = self.head(list(self.backbone(image).values()))
        return found["bbox_regression"], found["cls_logits"]


@dataclass(frozen=True)
class Recipe:
    """A model to export. gpu_slo_ms: the SLO on a GPU, scaled by --slo-scale elsewhere."""

    gpu_slo_ms: float
    build: Callable[[], nn.Module]
    inputs: tuple
    outputs: tuple

    def sample(self, rows, generator):
        """The input tensors of that many rows, each row unlike the others."""
        return tuple(sample_of(tensor, rows, generator) for tensor in self.inputs)


def sample_of(tensor, rows, generator):
    """Random values for one declared input: ids in its range, a smooth field plus noise for images."""
    shape = tuple(tensor.shape[1:])
    if tensor.range:
        lowest, highest = tensor.range
        return torch.randint(lowest, highest + 1, (rows, *shape), generator=generator)
    noise = torch.randn(rows, *shape, generator=generator)
    if len(shape) != 3:
        return noise
    # Pure noise looks the same to any network that averages over the picture at its end.
    coarse = torch.randn(rows, shape[0], 6, 6, generator=generator)
    return functional.interpolate(coarse, shape[1:], mode="bilinear") + 0.3 * noise


def with_statistics(model, recipe, generator):
    """Sets batch-norm statistics from a few training forwards; returns the model in eval mode.

    Fresh statistics let the activations of a deep network with random weights die out.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms:
        return model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average over the forwards
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        for _ in range(STATISTICS_FORWARDS):
            model(*recipe.sample(STATISTICS_ROWS, generator))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return model.eval()


def vision(gpu_slo_ms, build):
    """The recipe of an ImageNet classifier."""
    return Recipe(gpu_slo_ms, build, (Tensor("image", "f32", (-1, 3, 224, 224)),),
                  (Tensor("logits", "f32", (-1, 1000)),))


def zoo():
    """Every recipe by its model's name, in the order of the paper's list; crepe comes last."""
    nets = torchvision.models
    return {
        "lenet": Recipe(5, LeNet, (Tensor("image", "f32", (-1, 1, 28, 28)),),
                        (Tensor("logits", "f32", (-1, 10)),)),
        "googlenet": vision(66, lambda: nets.googlenet(
            weights=None, aux_logits=False, transform_input=False, init_weights=True)),
        "resnet50": vision(108, lambda: nets.resnet50(weights=None)),
        "ssd": Recipe(202, SsdHeads, (Tensor("image", "f32", (-1, 3, 300, 300)),),
                      (Tensor("boxes", "f32", (-1, 8732, 4)),
                       Tensor("classes", "f32", (-1, 8732, 91)))),
        "vgg16": vision(142, lambda: nets.vgg16(weights=None)),
        "mnasnet1_0": vision(62, lambda: nets.mnasnet1_0(weights=None)),
        "mobilenet_v2": vision(64, lambda: nets.mobilenet_v2(weights=None)),
        "densenet161": vision(202, lambda: nets.densenet161(weights=None)),
        "bert": Recipe(22, Bert, (Tensor("ids", "i64", (-1, BERT_TOKENS),
                                         (0, BERT_VOCABULARY - 1)),),
                       (Tensor("hidden", "f32", (-1, BERT_TOKENS, 768)),
                        Tensor("pooled", "f32", (-1, 768)))),
        "crepe": Recipe(4, crepe.build, (Tensor("samples", "f32", (-1, crepe.FRAME_SAMPLES)),),
                        (Tensor("activations", "f32", (-1, crepe.BIN_COUNT)),)),
    }
