"""Perturbed pairs at the rewind point: how far can two networks be moved apart and still train into one valley (Finding 2).

All directions lie in the axial subspace of a level's mask: pruned weights stay zero, and biases and batch-norm
parameters stay where they are.
"""

from __future__ import annotations

import pandas as pd
import torch

from . import pruning
from .barriers import barrier, grid, segment
from .chains import Runs
from .networks import State
from .pruning import Mask
from .train import Start, generator, train_all

RANDOM, IMP = "random", "imp"


def direction(mask: Mask, generator: torch.Generator) -> State:
    """A direction of length 1 in the mask's axial subspace, uniform over all of them: prunable weights only."""
    normal = {name: torch.randn(kept.shape, generator=generator) * kept for name, kept in mask.items()}
    length = distance(normal)
    return {name: tensor / length for name, tensor in normal.items()}


def distance(one: State, other: State | None = None) -> float:
    """The Euclidean distance between two states, or from the origin, over all tensors of `one`."""
    parts = (tensor if other is None else tensor - other[name] for name, tensor in one.items())
    return float(torch.cat([part.flatten().double() for part in parts]).norm())


def moved(state: State, along: State, length: float) -> State:
    """The state moved by `length` times the direction `along`."""
    return {name: tensor + length * along[name] if name in along else tensor for name, tensor in state.items()}


def perturbed(runs: Runs, seed: int, rewind_step: int, level: int, length: float) -> list[State]:
    """The two starting points of a pair: the level's pruned rewind point, moved along two independent directions.

    Args:
        length: in units of `step_length`. The directions are the same for every length.
    """
    mask = runs.level(seed, rewind_step, level).mask
    start = pruning.apply(mask, runs.rewind_point(seed, rewind_step))
    by = length * step_length(runs, seed, rewind_step, level)
    return [moved(start, direction(mask, generator(seed, "perturbation", rewind_step, level, which)), by)
            for which in (0, 1)]


def step_length(runs: Runs, seed: int, rewind_step: int, level: int) -> float:
    """`d_L = || m^(L) * w_tau - m^(L+1) * w_tau ||`: how far pruning moves a level's pruned rewind point."""
    here, there = _pruned_rewind_points(runs, seed, rewind_step, level)
    return distance(here, there)


def perturbations(runs: Runs, seed: int, rewind_step: int, level: int) -> pd.DataFrame:
    """Barriers between networks trained from perturbed starts, within a level's mask.

    Of each pair, the first trains with the level's data order and the second with another.

    * kind "random": both moved from the pruned rewind point, by `length` along directions of their own. Length 0 is
      stability to the noise of SGD alone (Frankle et al. 2020).
    * kind "imp": the first not moved, the second moved as pruning moves it, to `m^(L+1) * w_tau`; length 1.

    Columns: kind, length (in units of d_L), step_length (d_L), start_norm (of the pruned rewind point), test_error,
    other_error, barrier (test error, between the two).
    """
    e = runs.experiment
    mask = runs.level(seed, rewind_step, level).mask
    here, there = _pruned_rewind_points(runs, seed, rewind_step, level)
    orders = (seed, "order", level), (seed, "order", level, "second")
    starts = {(RANDOM, length, which): Start(state, mask, orders[which]) for length in e.perturbation_lengths
              for which, state in enumerate(perturbed(runs, seed, rewind_step, level, length))}
    starts[IMP, 1.0, 1] = Start(there, mask, orders[1])
    ends = {}
    if level > 0:  # the chain has trained it; not so the dense network, whose momentum was not reset at the rewind step
        ends[RANDOM, 0.0, 0] = runs.level(seed, rewind_step, level).state
    missing = [key for key in starts if key not in ends]
    trained = train_all(e, runs.data.train, [starts[key] for key in missing], rewind_step, store=runs.store)
    ends |= {key: states[e.steps] for key, states in zip(missing, trained)}
    ends[IMP, 1.0, 0] = ends[RANDOM, 0.0, 0]

    rows = []
    for kind, length in [(RANDOM, length) for length in e.perturbation_lengths] + [(IMP, 1.0)]:
        path = segment(runs.network, ends[kind, length, 0], ends[kind, length, 1], grid(e.barrier_points),
                       runs.measured, ("test_error",))
        errors = path["test_error"]
        rows.append({
            "kind": kind, "length": length, "step_length": distance(here, there),
            "start_norm": distance({name: here[name] for name in mask}), "test_error": errors.iloc[0],
            "other_error": errors.iloc[-1], "barrier": barrier(path)})
    return pd.DataFrame(rows)


def _pruned_rewind_points(runs: Runs, seed: int, rewind_step: int, level: int) -> tuple[State, State]:
    rewind_point = runs.rewind_point(seed, rewind_step)
    here, there = (pruning.apply(runs.level(seed, rewind_step, at).mask, rewind_point) for at in (level, level + 1))
    return here, there
