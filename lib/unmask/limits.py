"""How much can be pruned at once: the theory's maximum, the exact quadratic's, and what is measured (Finding 3).

Everything starts from solutions `w^(L)` of the last rewind step. Curvature is that of the train loss on the first
`curvature_samples` training samples, in evaluation mode, in the weights that survive at level L.
"""

from __future__ import annotations

import functools
import time

import numpy as np
import pandas as pd
import torch
from scipy.sparse.linalg import aslinearoperator

from . import curvature, networks, pruning
from .barriers import barrier, grid, interpolate, segment
from .chains import Runs
from .curvature import Spectrum, surviving
from .networks import State
from .parallel import Task
from .pruning import Mask
from .store import TENSORS
from .train import Start, evaluate, generator, train_all

# Fields that stored curvature depends on; of the first seed more is computed.
CURVATURE = ("limit_levels", "curvature_samples", "lanczos_probes", "lanczos_steps", "first_seed")
MASKS = ("random", "magnitude")
EXACT_UP_TO = 8000  # survivors; the exact Hessian of more needs more than half a gigabyte, several times
DRAWS = 8  # random masks whose displacements are compared with that of the magnitude mask
HEIGHTS = (0.5, 1.0, 2.0)  # multiples of the loss height, to show how much a prediction depends on it


def removal_order(kind: str, weights: np.ndarray, *names) -> np.ndarray:
    """Which surviving weight goes first, second, ...: (D,), a permutation.

    "magnitude": the smallest first, ties as in `pruning`. "random": drawn by the generator of `names`.
    """
    if kind == "magnitude":
        return np.argsort(np.abs(weights), kind="stable")
    return torch.randperm(len(weights), generator=generator(*names)).numpy()


def without(mask: Mask, order: np.ndarray, removed: int) -> Mask:
    """The mask without the first `removed` survivors of an order, counted as in `curvature.surviving`."""
    return pruning.without(mask, torch.from_numpy(order[:removed].copy()))


class Solution:
    """`w^(L)` of one seed and the last rewind step, as vectors over its D survivors."""

    def __init__(self, runs: Runs, seed: int, level: int):
        self.runs, self.seed, self.level = runs, seed, level
        self.rewind_step = runs.experiment.rewind_steps[-1]
        self.state, self.mask = runs.level(seed, self.rewind_step, level)
        self.weights = surviving(self.state, self.mask)
        self.sample = runs.data.train.first(runs.experiment.curvature_samples)

    def order(self, kind: str, draw: int = 0) -> np.ndarray:
        return removal_order(kind, self.weights, self.seed, "removal", self.level, draw)

    def pruned(self, kind: str, ratio: float, draw: int = 0) -> Mask:
        """The level's mask without a share `ratio` of its survivors."""
        return without(self.mask, self.order(kind, draw), round(ratio * len(self.weights)))

    @functools.cached_property
    def operator(self):
        """The Hessian, to be multiplied with."""
        networks.load_state(self.runs.network, self.state)
        self.runs.network.eval()
        return curvature.hessian_operator(self.runs.network, self.mask, self.sample)

    def loss(self, state: State) -> float:
        """Train loss on the sample, in nats."""
        networks.load_state(self.runs.network, state)
        return evaluate(self.runs.network, self.sample).loss


def curvature_task(runs: Runs, seed: int, level: int) -> Task:
    """What computes and stores the curvature that several tables share."""
    name = _curvature_name(runs, seed, level) + TENSORS
    return Task("limits:stored_curvature", (seed, level), ((name, f"Hessian, seed {seed}, level {level}"),))


def stored_curvature(runs: Runs, seed: int, level: int) -> dict[str, torch.Tensor]:
    """Curvature at one solution, from the store; computed first if it is not there. All float64:

    * "0.values", "0.weights": the exact spectrum; "N.values", "N.weights": that by Lanczos with N steps.
    * "random", "magnitude": `curvature.least_rises` when weights are removed in that order, by the exact Hessian.

    The exact Hessian costs D times as much as one product with it, and D^2 numbers: it is computed for at most
    `EXACT_UP_TO` survivors, and of the dense network for the first seed only. Estimates stand in for it where there is
    none. For the first seed's densest and sparsest level there are two, to be compared with it and with each other; their
    products are taken with the exact Hessian, which costs little once it is there.
    """
    name, began = _curvature_name(runs, seed, level), time.perf_counter()
    found = runs.store.tensors(name)
    if found is not None:
        return found
    e, solution = runs.experiment, Solution(runs, seed, level)
    first = seed == e.first_seed
    exact = len(solution.weights) <= EXACT_UP_TO and (level > 0 or first)
    compared = first and level in (e.limit_levels[0], e.limit_levels[-1])
    if exact:
        networks.load_state(runs.network, solution.state)
        runs.network.eval()
        hessian = curvature.exact_hessian(runs.network, solution.mask, solution.sample)
    found = {}
    if compared or not exact:
        stops = (e.lanczos_steps, 2 * e.lanczos_steps) if compared else (e.lanczos_steps,)
        operator = aslinearoperator(hessian) if exact else solution.operator
        for steps, spectrum in zip(stops, curvature.spectral_densities(
                operator, e.lanczos_probes, stops, generator(seed, "spectrum", level))):
            found |= {f"{steps}.values": spectrum.values, f"{steps}.weights": spectrum.weights}
    if exact:
        values, hessian = curvature.convexify(hessian)
        found |= {"0.values": values[None], "0.weights": np.ones((1, len(values)))}
        for kind in MASKS:
            found[kind] = curvature.least_rises(hessian, solution.weights, solution.order(kind))
    found = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}
    runs.store.put_tensors(name, found, time.perf_counter() - began)
    return found


def _curvature_name(runs: Runs, seed: int, level: int) -> str:
    e = runs.experiment
    return (f"{e.recipe}/seed{seed}/rewind{e.rewind_steps[-1]:05d}/imp/"
            f"curvature{level:02d}-{e.digest(*CURVATURE)}")


def _spectra(found: dict[str, torch.Tensor]) -> dict[int, Spectrum]:
    """The spectra by number of Lanczos steps; 0: exact."""
    steps = sorted(int(name.removesuffix(".values")) for name in found if name.endswith(".values"))
    return {n: Spectrum(found[f"{n}.values"].numpy(), found[f"{n}.weights"].numpy()) for n in steps}


def spectra(runs: Runs, seed: int, level: int) -> pd.DataFrame:
    """The eigenvalues of the Hessian at one solution, by rank.

    Columns: steps (of Lanczos; 0: exact), rank (how many eigenvalues are at least this large, from 1 to D, evenly
    spaced on a log scale), eigenvalue (nats per squared weight).
    """
    parts = []
    for steps, spectrum in _spectra(stored_curvature(runs, seed, level)).items():
        order = np.argsort(-spectrum.values, axis=None)
        values, counted = spectrum.values.ravel()[order], np.cumsum(spectrum.weights.ravel()[order])
        ranks = np.unique(np.geomspace(1, runs.survivors(level), 120).round())
        at = np.searchsorted(counted / len(spectrum.values), ranks * (1 - 1e-9)).clip(max=len(values) - 1)
        parts.append(pd.DataFrame({"steps": steps, "rank": ranks.astype(int), "eigenvalue": values[at]}))
    return pd.concat(parts, ignore_index=True)


def curvatures(runs: Runs, seed: int, level: int) -> pd.DataFrame:
    """The spectrum of the Hessian at one solution in a few numbers.

    Columns: steps (of Lanczos; 0: exact), dimensions (D), largest, smallest (eigenvalues), trace, trace_error (standard
    error over probes), negative (how many eigenvalues are), norm (of the surviving weights).
    """
    rows = []
    for steps, spectrum in _spectra(stored_curvature(runs, seed, level)).items():
        total, error = spectrum.estimate(lambda values: values)
        rows.append({"steps": steps, "dimensions": runs.survivors(level), "largest": spectrum.values.max(),
                     "smallest": spectrum.values.min(), "trace": total, "trace_error": error,
                     "negative": spectrum.estimate(lambda values: values < 0)[0],
                     "norm": np.linalg.norm(Solution(runs, seed, level).weights)})
    return pd.DataFrame(rows)


def predictions(runs: Runs, seed: int, level: int) -> pd.DataFrame:
    """The predicted maximum pruning ratio at one solution.

    Columns: criterion ("random subspace", the theory, or "exact quadratic"), mask (one of `MASKS`), steps (of Lanczos;
    0: from the exact Hessian), height (multiple of the experiment's loss height), ratio, error (its standard error over
    probes).
    """
    found, e = stored_curvature(runs, seed, level), runs.experiment
    weights = Solution(runs, seed, level).weights
    distances = {"random": curvature.random_distances(weights), "magnitude": curvature.magnitude_distances(weights)}
    rows = []
    for height in HEIGHTS:
        for mask in MASKS:
            for steps, spectrum in _spectra(found).items():
                ratios = curvature.max_pruning_ratio(spectrum, distances[mask], height * e.loss_height)
                error = ratios.std(ddof=1) / len(ratios) ** 0.5 if len(ratios) > 1 else np.nan
                rows.append(("random subspace", mask, steps, height, ratios.mean(), error))
            if mask in found:
                ratio = curvature.largest_ratio(found[mask].numpy(), height * e.loss_height)
                rows.append(("exact quadratic", mask, 0, height, ratio, np.nan))
    return pd.DataFrame(rows, columns=["criterion", "mask", "steps", "height", "ratio", "error"])


def displacements(runs: Runs, seed: int, level: int) -> pd.DataFrame:
    """Curvature and loss on the way from one solution to its projections, with `prune_fraction` of its weights removed.

    Columns: mask (one of `MASKS`), draw (of `DRAWS` random masks), distance (from the solution to its projection),
    curvature (`v'Hv / v'v` along that way), t (position on it, in [0, 1]), loss (train loss on the sample).
    """
    solution, ratio, parts = Solution(runs, seed, level), runs.experiment.prune_fraction, []
    cases = [("magnitude", 0)] + [("random", draw) for draw in range(DRAWS)]
    ends = [pruning.apply(solution.pruned(kind, ratio, draw), solution.state) for kind, draw in cases]
    ways = np.stack([solution.weights - surviving(end, solution.mask) for end in ends], axis=1)
    curved = curvature.curvature_along(solution.operator, ways)
    for (kind, draw), end, way, along in zip(cases, ends, ways.T, curved):
        grid = np.linspace(0, 1, 6)
        parts.append(pd.DataFrame({
            "mask": kind, "draw": draw, "distance": np.linalg.norm(way), "curvature": along, "t": grid,
            "loss": [solution.loss(interpolate(solution.state, end, float(t))) for t in grid]}))
    return pd.concat(parts, ignore_index=True)


def prunings(runs: Runs, seed: int, level: int) -> pd.DataFrame:
    """One solution pruned at once by each of `prune_ratios`: its projection, and the network retrained in that mask.

    Columns: mask (one of `MASKS`), ratio, weights ("projection" or "retrained", from the rewind point), test_error,
    barrier (test error, to the solution), distance (from the solution to its projection).
    """
    e, solution = runs.experiment, Solution(runs, seed, level)
    masks = {(kind, ratio): solution.pruned(kind, ratio) for kind in MASKS for ratio in e.prune_ratios}
    rewind_point = runs.rewind_point(seed, solution.rewind_step)
    order = seed, "order", level, "pruned"
    retrained = train_all(e, runs.data.train, [Start(rewind_point, mask, order) for mask in masks.values()],
                          solution.rewind_step, store=runs.store)
    rows = []
    for ((kind, ratio), mask), trained in zip(masks.items(), retrained):
        projection = pruning.apply(mask, solution.state)
        distance = np.linalg.norm(solution.weights - surviving(projection, solution.mask))
        for weights, state in (("projection", projection), ("retrained", trained[e.steps])):
            path = segment(runs.network, solution.state, state, grid(e.barrier_points), runs.measured,
                           ("test_error",))
            rows.append({"mask": kind, "ratio": ratio, "weights": weights, "test_error": path["test_error"].iloc[-1],
                         "barrier": barrier(path), "distance": distance})
    return pd.DataFrame(rows)
