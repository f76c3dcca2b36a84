"""Moves in weight space, and error along the segment between two networks; the barrier of one is
`verdicts.barrier`."""

import pandas as pd
import torch
from torch import nn

from . import networks
from .data import Data, Split
from .networks import State
from .pruning import Mask
from .train import evaluate


def direction(mask: Mask, generator: torch.Generator) -> State:
    """A direction of length 1 in the mask's axial subspace, uniform over all of them."""
    normal = {n: torch.randn(kept.shape, generator=generator) * kept for n, kept in mask.items()}
    length = distance(normal)
    return {name: tensor / length for name, tensor in normal.items()}


def distance(one: State, other: State | None = None) -> float:
    """The Euclidean distance between two states, or from the origin, over all tensors of `one`; a
    buffer of booleans or whole numbers has no part in it."""
    lasting = {name: tensor for name, tensor in one.items() if tensor.is_floating_point()}
    parts = (w if other is None else w - other[name] for name, w in lasting.items())
    return float(torch.cat([part.flatten().double() for part in parts]).norm())


def moved(state: State, along: State, length: float) -> State:
    """The state moved by `length` times the direction `along`."""
    return {n: w + length * along[n] if n in along else w for n, w in state.items()}


def interpolate(one: State, other: State, t: float) -> State:
    """The point `(1 - t) * one + t * other`; every entry of the state, batch-norm statistics
    included. The ends are the two themselves, even where the other is not finite."""
    if t in (0, 1):
        return dict(other if t else one)
    # a buffer of whole numbers has no middle
    return {n: torch.lerp(w, other[n], t) if w.is_floating_point() else w for n, w in one.items()}


def grid(points: int) -> list[float]:
    """`points` interpolation weights from 0 to 1; of an odd number, the middle one is 1/2 to the
    bit."""
    return [i / (points - 1) for i in range(points)]


def segment(
    network: nn.Module,
    one: State,
    other: State,
    weights,
    data: Data,
    metrics: tuple[str, ...] = ("test_error",),
    reestimate: bool = False,
) -> pd.DataFrame:
    """Performance along the segment from `one` (weight 0) to `other` (weight 1).

    Args:
        network: where to evaluate; its state is overwritten.
        weights: interpolation weights in [0, 1].
        metrics: which of `METRICS` to compute.
        reestimate: replace the interpolated batch-norm statistics by those of the training data at
            each point.

    Returns:
        One row for each weight: column `t` and one for each metric."""
    rows = []
    for t in weights:
        networks.load_state(network, interpolate(one, other, t))
        if reestimate:
            reestimate_norms(network, data.train)
        row = {"t": t, "test_error": evaluate(network, data.test).error}
        if "train_error" in metrics or "train_loss" in metrics:
            row["train_error"], row["train_loss"] = evaluate(network, data.train)
        rows.append(row)
    return pd.DataFrame(rows, columns=["t", *metrics])


@torch.no_grad()
def reestimate_norms(network: nn.Module, split: Split, batch_size: int = 500) -> None:
    """Set batch-norm running statistics to their average over `split` in batches, at the present
    weights.

    Of several processes each does it all."""
    kind = nn.modules.batchnorm._BatchNorm
    momenta = {norm: norm.momentum for norm in network.modules() if isinstance(norm, kind)}
    if not momenta:
        return
    network.eval()  # dropout and the like stay off
    for norm in momenta:
        norm.train()
    seen = 0
    with networks.kernels(network):
        for x, y in split.chunks(batch_size):
            seen += len(y)
            for norm in momenta:
                norm.momentum = len(y) / seen
            network(x)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
