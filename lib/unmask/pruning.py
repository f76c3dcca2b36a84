"""Masks: which prunable weights survive.

A mask is a dict of boolean tensors under the names of the prunable weights, those of convolutions,
linear layers and attention; biases, norms and embeddings are never pruned, nor what is frozen or a
network names in `never_pruned`. Every function returns a new mask and leaves its arguments alone.
"""

import fnmatch
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UnmaskError
from .networks import State

Mask = dict[str, Tensor]


def dense_mask(network: nn.Module, never: Sequence[str] = ()) -> Mask:
    """The mask that keeps every prunable weight, in the network's order; `never`: patterns of names
    that are not.
    Raises UnmaskError: there is none, or a pattern fits no parameter."""
    names = [name for name, _ in network.named_parameters()]
    if odd := [pattern for pattern in never if not fnmatch.filter(names, pattern)]:
        raise UnmaskError(f"never_pruned: {odd[0]!r} fits none of {', '.join(names)}")
    kinds = nn.modules.conv._ConvNd, nn.Linear
    never = *never, *getattr(network, "never_pruned", ())
    modules = (name for name, module in network.named_modules() if isinstance(module, kinds))
    weights = {f"{name}.weight".removeprefix(".") for name in modules}
    attention = "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    mask = {
        name: torch.ones(weight.shape, dtype=torch.bool)
        for name, weight in network.named_parameters()
        if (name in weights or name.endswith(attention)) and weight.requires_grad
        if not any(fnmatch.fnmatch(name, pattern) for pattern in never)
    }
    if not mask:
        raise UnmaskError("the network has no weight that can be pruned")
    return mask


def survivors(mask: Mask) -> int:
    """How many weights the mask keeps."""
    return sum(int(kept.sum()) for kept in mask.values())


def survivors_at(total: int, fraction: float, level: int) -> int:
    """How many of `total` weights are left at `level`, when each level removes
    `round(fraction * survivors)`.
    Raises UnmaskError: a level on the way would leave no weight, or remove none."""
    left = total
    for reached in range(1, level + 1):
        removed = round(fraction * left)
        if not 0 < removed < left:
            outcome = "remove no weight" if removed == 0 else "leave no weight"
            said = f"pruning {left} weights at level {reached} would {outcome}; take a smaller "
            said += "number of levels or another fraction"
            raise UnmaskError(f"prune_fraction={fraction}, levels={level}: {said}")
        left -= removed
    return left


def apply(mask: Mask, state: State) -> State:
    """The state's projection onto the mask's axial subspace: pruned weights are zero, all else
    is as it was."""
    return {n: w * mask[n] if n in mask else w.clone() for n, w in state.items()}


def surviving(tensors: State | Mask, mask: Mask) -> np.ndarray:
    """The entries of a state, or of another mask, where `mask` keeps a weight: (D,), layer by
    layer, float64 or bool."""
    picked = torch.cat([tensors[name].cpu()[kept.cpu()] for name, kept in mask.items()]).numpy()
    return picked if picked.dtype == bool else picked.astype(np.float64)


def prune_magnitude(state: State, mask: Mask, keep: int) -> Mask:
    """Keep the `keep` survivors of largest magnitude, over all layers together (Frankle & Carbin
    2019). Of equal magnitudes the one that comes first in the network's order goes first.
    Raises UnmaskError: `keep` is not between 1 and the number of survivors."""
    scores = torch.cat([state[name].abs().flatten() for name in mask])
    return _prune_lowest(scores, mask, keep)


def prune_random(mask: Mask, keep: int, generator: torch.Generator) -> Mask:
    """Keep `keep` survivors chosen at random over all layers together.

    The same generator seed gives every weight the same rank, so masks of falling `keep` are nested.
    """
    count = sum(kept.numel() for kept in mask.values())
    return _prune_lowest(torch.rand(count, generator=generator), mask, keep)


def shuffle_layerwise(mask: Mask, generator: torch.Generator) -> Mask:
    """Permute each layer's mask: the density of every layer is kept, which weights survive is not.

    The same generator seed gives the same permutations, so shuffles of nested masks are nested."""
    shuffled = {}
    for name, kept in mask.items():
        order = torch.randperm(kept.numel(), generator=generator)
        shuffled[name] = kept.flatten()[order].view_as(kept)
    return shuffled


def without(mask: Mask, removed: Tensor | np.ndarray) -> Mask:
    """The mask without some of its survivors, given by their numbers as in `surviving`."""
    kept = torch.cat([kept.flatten() for kept in mask.values()])
    kept[kept.nonzero().squeeze(1)[torch.as_tensor(removed)]] = False
    parts = kept.split([part.numel() for part in mask.values()])
    return {name: part.view_as(mask[name]) for name, part in zip(mask, parts)}


def threshold(state: State, mask: Mask) -> float:
    """The smallest magnitude in `state` that `mask` keeps."""
    return float(np.abs(surviving(state, mask)).min())


def share_below(state: State, mask: Mask, limit: float) -> float:
    """Share of the mask's survivors whose magnitude in `state` is below `limit`."""
    return float((np.abs(surviving(state, mask)) < limit).mean())


def _prune_lowest(scores: Tensor, mask: Mask, keep: int) -> Mask:
    count = survivors(mask)
    if not 0 < keep <= count:
        raise UnmaskError(f"keep={keep}: must be between 1 and the {count} surviving weights")
    alive = torch.cat([kept.flatten() for kept in mask.values()])
    lowest = scores[alive].argsort(stable=True)[: count - keep]
    return without(mask, lowest)
