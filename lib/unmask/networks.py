"""Networks: plain modules that map a batch to logits, their state as a dict of tensors.

Several replicates of a network, of the same shape but with weights and data of their own, are one network of as many
channel groups. Its state is theirs, concatenated along the first dimension of every tensor, and each replicate
computes, to the bit, what it would alone; together they share the cost of starting each operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import CLASSES
from .experiments import Experiment

State = dict[str, Tensor]


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` for one image, whose rows or columns are the samples of the batch.

    In this layout a channel's batch statistics are those of one group of one image, and torch's group-norm kernel
    computes them several times faster than its batch-norm kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return torch.addcmul((self.bias - self.running_mean * scale)[:, None, None], x, scale[:, None, None])
        channels, count = x.shape[1], x[0, 0].numel()
        y, mean, rstd = torch.native_group_norm(x, self.weight, self.bias, 1, channels, count, channels, self.eps)
        with torch.no_grad():
            unbiased = (rstd[0].pow(-2) - self.eps) * (count / (count - 1))
            self.running_mean.lerp_(mean[0], self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return y


def conv(channels_in: int, channels_out: int, kernel: int, stride: int, replicates: int) -> nn.Conv2d:
    """Convolution along the signals of an image (1, replicates * channels, length, batch)."""
    return nn.Conv2d(replicates * channels_in, replicates * channels_out, (kernel, 1), (stride, 1), (kernel // 2, 0),
                     groups=replicates, bias=False)


class Block(nn.Module):
    """Two convolutions and a shortcut, projected by a 1 x 1 convolution where the shape changes (ResNet, option B)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, replicates: int):
        super().__init__()
        channels = replicates * channels_out
        self.conv1, self.norm1 = conv(channels_in, channels_out, 3, stride, replicates), BatchNorm(channels)
        self.conv2, self.norm2 = conv(channels_out, channels_out, 3, 1, replicates), BatchNorm(channels)
        self.project = channels_in != channels_out
        if self.project:
            self.conv3, self.norm3 = conv(channels_in, channels_out, 1, stride, replicates), BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y))
        return y.add_(self.norm3(self.conv3(x)) if self.project else x).relu_()


class Classifier(nn.Linear):
    """`nn.Linear` for each replicate: (replicates * features, batch) to (replicates * batch, classes)."""

    def __init__(self, features: int, classes: int, replicates: int):
        super().__init__(features, replicates * classes)
        self.replicates = replicates

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(x.chunk(self.replicates), self.weight.chunk(self.replicates), self.bias.chunk(self.replicates))
        return torch.cat([F.linear(part.t(), weight, bias) for part, weight, bias in parts])


class ResNet1d(nn.Module):
    """Residual network for signals: a stem, three blocks of w, 2w, 4w channels, mean over positions, linear layer.

    Takes (batch, replicates, length), returns logits (replicates * batch, classes). Inside, the batch is the width of
    one image (1, replicates * channels, length, batch): convolutions of height k and width 1 compute what `nn.Conv1d`
    would, on rows of contiguous samples that keep a CPU busy where rows of 40 points do not.
    """

    def __init__(self, width: int, stem_kernel: int, stem_stride: int, replicates: int):
        super().__init__()
        self.stem = conv(1, width, stem_kernel, stem_stride, replicates)
        self.norm = BatchNorm(replicates * width)
        self.blocks = nn.Sequential(Block(width, width, 1, replicates), Block(width, 2 * width, 2, replicates),
                                    Block(2 * width, 4 * width, 2, replicates))
        self.linear = Classifier(4 * width, CLASSES, replicates)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 2, 0)[None]
        x = self.norm(self.stem(x)).relu_()
        return self.linear(self.blocks(x)[0].mean(1))


def build(experiment: Experiment, replicates: int = 1) -> nn.Module:
    """The experiment's network, with weights still to be loaded."""
    kernel, stride = {"resnet1d": (3, 1), "resnet1d-strided": (5, 2)}[experiment.network]
    return ResNet1d(experiment.width, kernel, stride, replicates)


def stack(states: Sequence[State]) -> State:
    """The state (or mask) of replicates from the states (or masks) of each."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def unstack(state: State, replicates: int) -> list[State]:
    """The state of each replicate; the inverse of `stack`."""
    parts = {name: tensor.chunk(replicates) for name, tensor in state.items()}
    return [{name: part[i].clone() for name, part in parts.items()} for i in range(replicates)]


def initial_state(experiment: Experiment, generator: torch.Generator) -> State:
    """A network's state at initialisation, drawn from `generator`.

    Kaiming-normal weights, batch-norm scale uniform in [0, 1], shifts and biases zero (as OpenLTH and the authors'
    closest public configuration do).
    """
    network = build(experiment)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, generator=generator)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return state_of(network)


def state_of(network: nn.Module) -> State:
    """A copy of the parameters and batch-norm statistics, by name, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()
            if not name.endswith("num_batches_tracked")}


def load_state(network: nn.Module, state: State) -> None:
    """Copy `state` into the network."""
    network.load_state_dict(state, strict=False)
