"""Finding 3: flatness at the end of training limits how much can be pruned at once.

Everything starts from solutions `w^(L)` of the last rewind step. Curvature is that of the train
loss on the first `curvature_samples` training samples, in evaluation mode, in the D weights that
survive at level L. There are three answers: the theory of random subspaces, the exact quadratic,
and what is measured.
"""

from __future__ import annotations

import functools
from itertools import cycle, product

import numpy as np
import pandas as pd
import scipy.linalg
import seaborn as sns
from matplotlib.figure import Figure

import unmask

from .. import plots
from ..chains import place
from ..errors import Degenerate, UnmaskError
from ..experiments import Experiment
from ..plots import DASHES, PERCENT, mean_and_range, styles, threshold_line
from ..tables import Part, levels_below_the_last, table
from ..verdicts import Claims, Tables, at_latest, barrier, is_at_most, is_connected, is_matching
from ..verdicts import judge, settings_in_numbers, with_matching

MASKS = ("random", "magnitude")
DRAWS = 8  # random masks whose displacements are compared with that of the magnitude mask
HEIGHTS = (0.5, 1.0, 2.0)  # of a sublevel set: how much a prediction depends on it
EXACT_UP_TO = 8000  # survivors; the exact Hessian of more needs half a gigabyte, several times


class Solution:
    """`w^(L)` of one seed and the last rewind step, as vectors over its D survivors."""

    def __init__(self, lab, seed: int, level: int):
        e = lab.experiment
        self.lab, self.names = lab, (seed, "removal", level)
        self.state, self.mask, _ = lab.level(seed, e.latest, level)
        self.weights = unmask.pruning.surviving(self.state, self.mask)
        self.sample = lab.data.train.as_inputs(e.curvature_samples)

    def order(self, kind: str, draw: int = 0) -> np.ndarray:
        """Which surviving weight goes first, second, ...: (D,), a permutation.

        "magnitude": the smallest first, ties as in `pruning`. "random": one of several draws."""
        if kind == "magnitude":
            return np.argsort(np.abs(self.weights), kind="stable")
        import torch

        draws = unmask.train.generator(*self.names, draw)
        return torch.randperm(len(self.weights), generator=draws).numpy()

    def pruned(self, kind: str, ratio: float, draw: int = 0):
        """The level's mask without a share `ratio` of its survivors."""
        first = self.order(kind, draw)[: round(ratio * len(self.weights))]
        return unmask.pruning.without(self.mask, first.copy())

    def evaluated(self):
        """The network with these weights, in evaluation mode."""
        unmask.networks.load_state(self.lab.network, self.state)
        return self.lab.network.eval()

    @functools.cached_property
    def operator(self):
        """The Hessian, to be multiplied with."""
        return unmask.curvature.hessian_operator(self.evaluated(), self.mask, self.sample)

    def loss(self, state) -> float:
        """Train loss on the sample, in nats."""
        unmask.networks.load_state(self.lab.network, state)
        return unmask.train.evaluate(self.lab.network, self.sample).loss


# The theory of random subspaces (after Larsen et al. 2022). A spectrum is `curvature.Spectrum`.


def random_distances(weights: np.ndarray) -> np.ndarray:
    """`R = sqrt(m / D) ||w||`, the root mean square distance to the projection when m = 0 ... D
    random weights go, (D + 1,)."""
    return np.sqrt(np.linspace(0, 1, len(weights) + 1)) * np.linalg.norm(weights)


def magnitude_distances(weights: np.ndarray) -> np.ndarray:
    """R when the m = 0 ... D weights of smallest magnitude go, (D + 1,)."""
    return np.sqrt(np.cumsum(np.concatenate([[0], np.sort(weights**2)])))


def predicted_dimension(values, weights, distance: float, eps: float) -> np.ndarray:
    """`sum_i r_i^2 / (r_i^2 + R^2)`, `r_i^2 = 2 eps / lambda_i`, for each row of a spectrum.

    So many dimensions can go before a random subspace through a random point at `distance` R misses
    the ellipsoid of loss rise `eps` (an approximation from below). Negative eigenvalues count as
    flat: 1 each.
    Raises UnmaskError: `eps` is not positive and finite, `distance` is negative, the spectrum is
    empty or not finite."""
    _check(values, distance, eps)
    sharp = np.where(values > 0, values, 0)
    return (weights * 2 * eps / (2 * eps + sharp * distance**2)).sum(-1)


def _check(values: np.ndarray, distance: float, eps: float) -> None:
    _check_eps(eps)
    if not distance >= 0:
        raise UnmaskError(f"distance={distance!r}: must be 0 or more")
    if values.size == 0 or not np.isfinite(values).all():
        raise UnmaskError("the spectrum is empty or has values that are not finite")


def max_pruning_ratio(spectrum, distances: np.ndarray, eps: float) -> np.ndarray:
    """The largest m / D with `m <= predicted_dimension` at R(m), for each row of the spectrum.

    m rises, and the right side does not, as it falls in R and R grows with m: what is allowed ends
    at one m, found by bisection. Assumes a random subspace, and a gradient of zero at the solution.
    An estimated spectrum must resolve eigenvalues of about `2 eps / R^2`, where flat ends.

    Args:
        distances: R for m = 0 ... D, (D + 1,); of `random_distances` or `magnitude_distances`.
    Raises UnmaskError: as `predicted_dimension`, or the distances fall or do not fit the
    dimensions."""
    size = len(distances) - 1
    _check(spectrum.values, distances[0], eps)
    if not np.allclose(spectrum.weights.sum(1), size):
        found = f"the spectrum has {spectrum.weights[0].sum():.0f}"
        raise UnmaskError(f"distances for {size} dimensions: {found}")
    if not (np.diff(distances) >= 0).all():
        raise UnmaskError("distances must not fall as more weights are removed")

    def allowed(values, weights) -> int:
        # Bisection: `low` is allowed, `high` is not, and what is allowed ends between them.
        low, high = 0, size + 1
        while high - low > 1:
            m = (low + high) // 2
            # rounding does not decide where m is exactly what is predicted
            fits = m <= predicted_dimension(values, weights, distances[m], eps) * (1 + 1e-9)
            low, high = (m, high) if fits else (low, m)
        return low

    return np.array([allowed(*row) for row in zip(*spectrum)]) / size


# The quadratic in the axial subspace itself.


def convexify(hessian: np.ndarray, cutoff: float = 1e-8) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues, rising, and the Hessian with those below `cutoff` times the largest raised
    to that.

    A quadratic with negative curvature has no minimum. Here such directions are almost flat
    instead: almost free, as in the theory. The result is nowhere below the quadratic of `hessian`,
    so what it allows, that allows too.
    Raises Degenerate: no eigenvalue is positive."""
    values, vectors = scipy.linalg.eigh(hessian)
    least = cutoff * values[-1]
    if least <= 0:
        said = f"no direction has positive curvature (largest eigenvalue {values[-1]:.3g})"
        raise Degenerate(said)
    # Add along each eigenvector what its eigenvalue lacks; in place, for these are large.
    low = int((values < least).sum())
    raised = vectors[:, :low] * np.sqrt(least - values[:low])
    del vectors
    convex = raised @ raised.T
    convex += hessian
    return values, convex


def least_rises(hessian: np.ndarray, weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The least loss rise in the axial subspace after each removal: (D + 1,), from 0, never
    falling.

    For removed weights p and kept weights k it is `1/2 w_p' (H_pp - H_pk H_kk^-1 H_kp) w_p`: the
    kept weights make up for the removed ones as well as they can (Optimal Brain Surgeon, Hassibi &
    Stork 1993).

    Args:
        hessian: (D, D), positive definite; see `convexify`.
        weights: (D,), the solution, where the gradient is taken to be zero.
        order: (D,), a permutation: which weight is removed first, second, ...
    Raises UnmaskError: `order` is not a permutation, or the Hessian is not positive definite."""
    import torch

    if not np.array_equal(np.sort(order), np.arange(len(weights))):
        raise UnmaskError(f"order must name each of the {len(weights)} weights once")
    # Put the first to be removed last and factorise H = L L'. The Schur complement of the last m is
    # M M', where M is the last m x m block of L, so the rise is half the squared length of the last
    # m entries of L' w: one factorisation gives every m.
    backwards = np.asarray(order)[::-1]
    matrix = torch.from_numpy(hessian[np.ix_(backwards, backwards)])
    try:
        factor = torch.linalg.cholesky(matrix).numpy()
    except torch.linalg.LinAlgError:
        said = "the Hessian is not positive definite: take that of convexify(hessian)"
        raise UnmaskError(said) from None
    squares = (weights[backwards] @ factor)[::-1] ** 2
    return np.concatenate([[0], np.cumsum(squares / 2)])


def largest_ratio(rises: np.ndarray, eps: float) -> float:
    """The largest m / D whose rise, of `least_rises`, is at most `eps`.
    Raises UnmaskError: `eps` is not positive and finite."""
    _check_eps(eps)
    return float((np.searchsorted(rises, eps, side="right") - 1) / (len(rises) - 1))


def _check_eps(eps: float) -> None:
    if not (np.isfinite(eps) and eps > 0):
        raise UnmaskError(f"eps={eps!r}: must be positive and finite")


# What is measured

_CURVATURE = ("limit_levels", "curvature_samples", "lanczos_probes", "lanczos_steps", "first_seed")
_READS = ("rewind_steps", *_CURVATURE)
_KEYS = ("seed", "level")


def _limited(e: Experiment):
    return product(e.all_seeds, levels_below_the_last(e, "limit_levels"))


def _solved(e: Experiment, seed: int, level: int):
    return [place(e, "imp", seed, e.latest, level)]


def _products(e: Experiment, seed: int, level: int) -> float:
    # an exact Hessian as large as those that are computed at all, or an estimate
    exact = EXACT_UP_TO * (1 - e.prune_fraction) ** level
    estimated = e.lanczos_probes * e.lanczos_steps
    return 4 * e.curvature_samples * (exact if level or seed == e.first_seed else estimated)


@table(_KEYS, reads=_READS, passes=_products, tensors=True, cases=_limited, needs=_solved)
def curvature(lab, seed, level) -> dict:
    """Curvature at one solution, which several tables share. All float64:

    * "0.values", "0.weights": the exact spectrum; "N.values", "N.weights": by N Lanczos steps.
    * "random", "magnitude": `least_rises` when weights are removed in that order.

    The exact Hessian costs D times as much as one product with it, and D^2 numbers: it is computed
    for at most `EXACT_UP_TO` survivors, and of the dense network for the first seed only. Estimates
    stand in for it where there is none. For the first seed's densest and sparsest level there are
    two, to be compared with it and with each other, by products with the exact Hessian."""
    import torch
    from scipy.sparse.linalg import aslinearoperator

    e, solution, found = lab.experiment, Solution(lab, seed, level), {}
    first = seed == e.first_seed
    exact = len(solution.weights) <= EXACT_UP_TO and (level > 0 or first)
    compared = first and level in (e.limit_levels[0], e.limit_levels[-1])
    if exact:
        network = solution.evaluated()
        hessian = unmask.curvature.exact_hessian(network, solution.mask, solution.sample)
    if compared or not exact:
        stops = (e.lanczos_steps, 2 * e.lanczos_steps)[: 2 if compared else 1]
        operator = aslinearoperator(hessian) if exact else solution.operator
        draws = unmask.train.generator(seed, "spectrum", level)
        estimate = unmask.curvature.spectral_densities
        for steps, spectrum in zip(stops, estimate(operator, e.lanczos_probes, stops, draws)):
            found |= {f"{steps}.values": spectrum.values, f"{steps}.weights": spectrum.weights}
    if exact:
        try:
            values, hessian = convexify(hessian)
            rises = [least_rises(hessian, solution.weights, solution.order(kind)) for kind in MASKS]
        except Degenerate:  # of a dead network: nothing rises, whatever is removed
            values = scipy.linalg.eigvalsh(hessian)
            rises = [np.zeros(len(values) + 1) for _ in MASKS]
        found |= {"0.values": values[None], "0.weights": np.ones((1, len(values)))}
        found |= dict(zip(MASKS, rises))
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def _curved(e: Experiment, seed: int, level: int):
    return [*_solved(e, seed, level), Part("curvature", (seed, level))]


def _spectra(lab, seed: int, level: int) -> tuple[dict, dict]:
    """The spectra by number of Lanczos steps (0: exact), and all that is stored."""
    found = curvature.read(lab, (seed, level))
    steps = sorted(int(name.removesuffix(".values")) for name in found if name.endswith(".values"))
    arrays = {name: tensor.numpy() for name, tensor in found.items()}
    spectrum = unmask.curvature.Spectrum
    return {n: spectrum(arrays[f"{n}.values"], arrays[f"{n}.weights"]) for n in steps}, arrays


@table(_KEYS, reads=_READS, cases=_limited, needs=_curved)
def spectra(lab, seed, level) -> pd.DataFrame:
    """The eigenvalues of the Hessian at one solution, by rank.

    Columns: steps (of Lanczos; 0: exact), rank (how many eigenvalues are at least this large, from
    1 to D, evenly spaced on a log scale), eigenvalue (nats per squared weight)."""
    parts = []
    ranks = np.unique(np.geomspace(1, lab.survivors(level), 120).round())
    for steps, (values, weights) in _spectra(lab, seed, level)[0].items():
        order = np.argsort(-values, axis=None)
        counted = np.cumsum(weights.ravel()[order]) / len(values)
        at = np.searchsorted(counted, ranks * (1 - 1e-9)).clip(max=values.size - 1)
        columns = {"rank": ranks.astype(int), "eigenvalue": values.ravel()[order][at]}
        parts.append(pd.DataFrame({"steps": steps} | columns))
    return pd.concat(parts, ignore_index=True)


@table(_KEYS, reads=_READS, cases=_limited, needs=_curved)
def curvatures(lab, seed, level) -> pd.DataFrame:
    """The spectrum of the Hessian at one solution in a few numbers.

    Columns: steps (of Lanczos; 0: exact), dimensions (D), largest, smallest (eigenvalues), trace,
    trace_error (standard error over probes), negative (how many eigenvalues are), norm (of the
    surviving weights)."""
    rows, size = [], lab.survivors(level)
    norm = np.linalg.norm(Solution(lab, seed, level).weights)
    for steps, spectrum in _spectra(lab, seed, level)[0].items():
        trace, error = spectrum.estimate(lambda values: values)
        negative, _ = spectrum.estimate(lambda values: values < 0)
        ends = spectrum.values.max(), spectrum.values.min()
        rows.append((steps, size, *ends, trace, error, negative, norm))
    columns = ["steps", "dimensions", "largest", "smallest", "trace", "trace_error"]
    return pd.DataFrame(rows, columns=[*columns, "negative", "norm"])


@table(_KEYS, reads=(*_READS, "loss_height"), cases=_limited, needs=_curved)
def predictions(lab, seed, level) -> pd.DataFrame:
    """The predicted maximum pruning ratio at one solution.

    Columns: criterion ("random subspace", the theory, or "exact quadratic"), mask (one of `MASKS`),
    steps (of Lanczos; 0: from the exact Hessian), height (multiple of the experiment's loss
    height), ratio, error (its standard error over probes)."""
    spectra, found = _spectra(lab, seed, level)
    weights, rows = Solution(lab, seed, level).weights, []
    distances = dict(zip(MASKS, (random_distances(weights), magnitude_distances(weights))))
    for height, mask in product(HEIGHTS, MASKS):
        eps = height * lab.experiment.loss_height
        for steps, spectrum in spectra.items():
            ratios = max_pruning_ratio(spectrum, distances[mask], eps)
            error = ratios.std(ddof=1) / len(ratios) ** 0.5 if len(ratios) > 1 else np.nan
            rows.append(("random subspace", mask, steps, height, ratios.mean(), error))
        if mask in found:
            ratio = largest_ratio(found[mask], eps)
            rows.append(("exact quadratic", mask, 0, height, ratio, np.nan))
    columns = ["criterion", "mask", "steps", "height", "ratio", "error"]
    return pd.DataFrame(rows, columns=columns)


@table(
    _KEYS,
    reads=("rewind_steps", "curvature_samples", "prune_fraction"),
    passes=lambda e, *keys: 10 * (1 + DRAWS) * e.curvature_samples,
    cases=_limited,
    needs=_solved,
)
def displacements(lab, seed, level) -> pd.DataFrame:
    """Curvature and loss on the way from one solution to its projections, with `prune_fraction` of
    its weights removed.

    Columns: mask (one of `MASKS`), draw (of `DRAWS` random masks), distance (from the solution to
    its projection), curvature (`v'Hv / v'v` along that way), t (position on it, in [0, 1]), loss
    (train loss on the sample)."""
    solution, parts = Solution(lab, seed, level), []
    ratio, pruning = lab.experiment.prune_fraction, unmask.pruning
    cases = [("magnitude", 0), *(("random", draw) for draw in range(DRAWS))]
    ends = [
        pruning.apply(solution.pruned(kind, ratio, draw), solution.state) for kind, draw in cases
    ]
    ways = [solution.weights - pruning.surviving(end, solution.mask) for end in ends]
    curved = unmask.curvature.curvature_along(solution.operator, np.stack(ways, axis=1))
    grid = np.linspace(0, 1, 6)
    for (kind, draw), end, way, along in zip(cases, ends, ways, curved):
        points = (unmask.barriers.interpolate(solution.state, end, float(t)) for t in grid)
        about = {"mask": kind, "draw": draw, "distance": np.linalg.norm(way), "curvature": along}
        losses = {"t": grid, "loss": [solution.loss(point) for point in points]}
        parts.append(pd.DataFrame(about | losses))
    return pd.concat(parts, ignore_index=True)


def _sweep(e: Experiment, seed: int, level: int) -> float:
    return len(MASKS) * len(e.prune_ratios) * (e.steps - e.latest)


def _paths(e: Experiment, seed: int, level: int) -> float:
    return 2 * len(MASKS) * len(e.prune_ratios) * e.barrier_points * e.evaluated[0]


@table(
    _KEYS,
    reads=("rewind_steps", "prune_ratios", "barrier_points"),
    steps=_sweep,
    passes=_paths,
    cases=_limited,
    needs=_solved,
)
def prunings(lab, seed, level) -> pd.DataFrame:
    """One solution pruned at once by each of `prune_ratios`: its projection, and the network
    retrained in that mask.

    Columns: mask (one of `MASKS`), ratio, weights ("projection" or "retrained", from the rewind
    point), test_error, barrier (test error, to the solution), distance (from the solution to its
    projection)."""
    e, solution, rows = lab.experiment, Solution(lab, seed, level), []
    cases = list(product(MASKS, e.prune_ratios))
    masks = [solution.pruned(kind, ratio) for kind, ratio in cases]
    start, order = lab.rewind_point(seed, e.latest), (seed, "order", level, "pruned")
    starts = [unmask.train.Start(start, mask, order) for mask in masks]
    trained = unmask.train.train_all(e, lab.data.train, starts, e.latest, store=lab.store)
    for (kind, ratio), mask, (states, _) in zip(cases, masks, trained):
        projection = unmask.pruning.apply(mask, solution.state)
        left = unmask.pruning.surviving(projection, solution.mask)
        distance = np.linalg.norm(solution.weights - left)
        for weights, state in (("projection", projection), ("retrained", states[e.steps])):
            path = lab.path(solution.state, state)
            error = path.test_error.iloc[-1]
            rows.append((kind, ratio, weights, error, barrier(path), distance))
    columns = ["mask", "ratio", "weights", "test_error", "barrier", "distance"]
    return pd.DataFrame(rows, columns=columns)


# Judging


def measured_limits(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The measured maximum pruning ratio: the largest of the sweep that still matches and is
    connected.

    Columns: seed, level, mask, weights, ratio (0 if there is none), above (the next ratio of the
    sweep, or 1)."""
    prunings = tables["prunings"]
    passed = is_matching(prunings, tables["levels"], e) & is_connected(prunings.barrier, e)
    table = prunings.assign(ratio=prunings.ratio.where(passed, 0.0))
    table = table.groupby(["seed", "level", "mask", "weights"]).ratio.max().reset_index()
    following = dict(zip((0.0, *e.prune_ratios), (*e.prune_ratios, 1.0)))
    return table.assign(above=table.ratio.map(following))


def best_of(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """For each combination of `keys`, the rows from the exact Hessian, else those by most steps
    of Lanczos."""
    rank = table.steps.where(table.steps > 0, table.steps.max() + 1)
    return table[rank == rank.groupby([table[key] for key in keys]).transform("max")]


def best_predictions(tables: Tables) -> pd.DataFrame:
    """Of each prediction the one by the best spectrum there is."""
    return best_of(tables["predictions"], ["seed", "level", "criterion"])


def predicted_and_measured(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Each prediction at the preset's loss height beside the measured maximum for retrained
    networks.

    Columns: seed, level, mask, criterion, predicted, low and high (at half and twice the height),
    ratio, above (see `measured_limits`), miss (distance of the prediction from where the maximum
    must lie, between `ratio` and `above`)."""
    keys = ["seed", "level", "mask", "criterion"]
    heights = best_predictions(tables).pivot(index=keys, columns="height", values="ratio")
    heights = heights.rename(columns={0.5: "low", 1.0: "predicted", 2.0: "high"}).reset_index()
    measured = measured_limits(tables, e)
    table = heights.merge(measured[measured.weights == "retrained"], on=keys[:3])
    miss = [table.ratio - table.predicted, table.predicted - table.above]
    miss = pd.concat(miss, axis=1).max(axis=1).clip(lower=0)
    return table.assign(miss=miss).rename_axis(columns=None)


def flatness(tables: Tables) -> pd.DataFrame:
    """One row for each seed and level: curvature along the way to the magnitude projection, and
    along random ones.

    Columns: seed, level, magnitude, random (median over draws), flatter (is magnitude's)."""
    ways = tables["displacements"]
    once = ways[ways.t == ways.t.min()]
    table = once.groupby(["seed", "level", "mask"]).curvature.median().unstack()
    table = table.rename_axis(columns=None).reset_index()
    return table.assign(flatter=table.magnitude < table.random)


def one_shot_goals(tables: Tables, e: Experiment) -> pd.DataFrame:
    """From each solution, the ratio `goal` that would lead at once to the sparsest level that
    matches by iterating; only where there is one and the sweep goes as far.

    Columns: seed, level, goal, and for magnitude pruning: measured and above (the maximum lies
    between the two), predicted (by the theory), decided (the goal does not lie between them)."""
    chain = at_latest(with_matching(tables["levels"], e), e)
    sparsest = chain[chain.matching].groupby("seed").density.min()
    densities = chain.set_index(["seed", "level"]).density
    theory = predicted_and_measured(tables, e)
    theory = theory[(theory.criterion == "random subspace") & (theory["mask"] == "magnitude")]
    rows = theory.set_index(["seed", "level"])[["predicted", "ratio", "above"]]
    goal = 1 - rows.index.get_level_values("seed").map(sparsest) / densities.reindex(rows.index)
    table = rows.rename(columns={"ratio": "measured"}).assign(goal=goal)
    table = table.assign(decided=(table.above <= goal) | (table.measured >= goal))
    return table[(goal > 0) & (goal <= e.prune_ratios[-1])].reset_index()


@judge("3", needs=("levels", "predictions", "displacements", "prunings"))
def verdicts(claims: Claims, tables: Tables, e: Experiment) -> None:
    table = predicted_and_measured(tables, e)
    right = is_at_most(table.miss, e.limit_tolerance)
    measured = measured_limits(tables, e)
    measured = measured[measured.weights == "retrained"]
    ratio = measured.pivot(index=["seed", "level"], columns="mask", values="ratio")
    goals = one_shot_goals(tables, e)
    decided = goals[goals.decided]
    within = f"predicted within {100 * e.limit_tolerance:.0f} points"

    def add_prediction(criterion, mask, claim):
        cases = right[(table.criterion == criterion) & (table["mask"] == mask)]
        claims.add("fig-limits", claim, cases)

    claim = f"the maximum ratio for random pruning is {within} by the theory of random subspaces"
    add_prediction("random subspace", "random", claim)
    claims.add(
        "fig-limits",
        "magnitude pruning does better: its measured maximum is above that of random pruning",
        ratio.magnitude > ratio.random,
    )
    claim = "magnitude pruning moves along flatter directions than random pruning"
    claims.add("fig-ways", claim, flatness(tables).flatter)
    claim = "no one-shot pruning gets to the sparsest matching level of IMP"
    claims.add("fig-sweep", f"{claim} (measured)", decided.measured < decided.goal)
    claims.add("fig-sweep", f"{claim} (theory)", goals.predicted < goals.goal)
    for mask in MASKS:
        claim = f"beyond the paper: the maximum for {mask} pruning is {within}"
        add_prediction("exact quadratic", mask, f"{claim} by the exact quadratic")


# The numbers of its prose


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; shares in percent, NaN where there is none (large networks have no exact
    Hessian)."""
    table = predicted_and_measured(tables, e)
    known = table.groupby(["seed", "level", "mask"]).criterion.transform("nunique")
    all_known = table[known == known.max()]  # means over the same networks
    means = all_known.groupby(["criterion", "mask"])[["predicted", "ratio"]].mean()
    ways = flatness(tables)
    found = {
        "compared": len(all_known[["seed", "level"]].drop_duplicates()),
        "loss_height": 1000 * e.loss_height,
        "samples": e.curvature_samples,
        "tolerance": 100 * e.limit_tolerance,
        "probes": e.lanczos_probes,
        "lanczos_steps": e.lanczos_steps,
        "flatter_by": (ways.random / ways.magnitude).median(),
        "limit_level": e.limit_levels[-1],
    }
    for mask in MASKS:
        found[f"random_{mask}"] = 100 * means.predicted["random subspace", mask]
        found[f"exact_{mask}"] = 100 * means.predicted.get(("exact quadratic", mask), np.nan)
        found[f"measured_{mask}"] = 100 * means.ratio["random subspace", mask]
    theory = table[(table.criterion == "random subspace") & (table["mask"] == "random")]
    for name, level in (("dense", e.limit_levels[0]), ("late", e.limit_levels[-1])):
        here = 100 * theory[theory.level == level][["predicted", "ratio"]]
        for end, row in (("least", here.min()), ("most", here.max())):
            found[f"{name}_predicted_{end}"] = row.predicted
            found[f"{name}_measured_{end}"] = row.ratio
    return settings_in_numbers(e) | found


def limits_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Maximum pruning ratios in percent, means over the seeds that have one: predicted (in
    brackets: at half and twice the loss height) and measured."""

    def words(row) -> str:
        return f"{row.predicted:.1f} ({row.low:.1f} to {row.high:.1f})"

    rows = predicted_and_measured(tables, e).groupby(["level", "mask", "criterion"])
    predicted = (rows[["low", "predicted", "high"]].mean() * 100).apply(words, axis=1).unstack()
    found = measured_limits(tables, e).groupby(["level", "mask", "weights"]).ratio.mean() * 100
    found = found.map("{:.1f}".format).unstack().rename(columns="measured, {}".format)
    return predicted.join(found).fillna("-")


def spectra_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Spectra in numbers, one row for each level, seed and method."""
    table = tables["curvatures"]
    errors = table.trace_error.map(" ± {:.1f}".format).where(table.steps > 0, "")
    table = table.assign(
        method=table.steps.map(_method),
        trace=table.trace.map("{:.1f}".format) + errors,
        negative=table.negative.round().astype(int),
        largest=table.largest.round(2),
        smallest=table.smallest.map("{:.1e}".format),
    )
    columns = ["dimensions", "largest", "smallest", "negative", "trace"]
    return table.set_index(["level", "seed", "method"])[columns].sort_index()


def _method(steps: int) -> str:
    return f"Lanczos, {steps} steps" if steps else "exact"


# Its figures: blue circles are random pruning, orange squares magnitude pruning

_LOOKS = {
    mask: {name: style[name] for name in ("color", "marker")}
    for mask, style in styles(MASKS).items()
}


def hessian_spectra(tables: Tables, e: Experiment) -> Figure:
    """Eigenvalues by rank. Left: at each level of the first seed, exact, or by most steps of
    Lanczos where the network is too large. Right: the densest and the sparsest of these levels,
    exact and by Lanczos."""
    spectra = tables["spectra"]
    spectra = spectra[spectra.seed == spectra.seed.min()]
    spectra = spectra.assign(shown=spectra.eigenvalue.where(spectra.eigenvalue > 0))
    exact = best_of(spectra, ["level"])
    levels = sorted(exact.level.unique())
    colors = dict(zip(levels, sns.color_palette("viridis", len(levels))))
    figure, axes = plots.panels(2, width=4.4, height=3.8, sharey=True)
    left, right = axes[0]
    for dashes, (level, rows) in zip(cycle(DASHES), exact.groupby("level")):
        look = dict(color=colors[level], ls=dashes, label=f"level {level}")
        left.plot(rows["rank"], rows.shown, **look)
    for level in sorted({levels[0], levels[-1]}):
        for dashes, (steps, rows) in zip(DASHES, spectra[spectra.level == level].groupby("steps")):
            look = dict(color=colors[level], ls=dashes, lw=1.2)
            right.plot(rows["rank"], rows.shown, label=f"level {level}, {_method(steps)}", **look)
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylim=(1e-6, None))
        plots.plain_log(ax.xaxis)
        ax.legend(fontsize="small")
    known = (exact.steps == 0).all()
    left.set_ylabel("eigenvalue of the Hessian")
    left.set_title("exact, by level" if known else "best estimate, by level")
    right.set_title("exact and estimated" if known else "by number of steps")
    return figure


def pruning_sweep(tables: Tables, e: Experiment) -> Figure:
    """Test error (above) and barrier to the solution (below) against the ratio pruned at once, a
    column for each level.

    Hollow, dashed: projections; solid: retrained. Vertical lines: the theory's maximum ratios."""
    prunings, theory = tables["prunings"], best_predictions(tables)
    theory = theory[(theory.height == 1) & (theory.criterion == "random subspace")]
    chosen = sorted(prunings.level.unique())
    options = dict(rows=2, width=3.7, height=2.8, sharex=True, sharey="row")
    figure, axes = plots.panels(len(chosen), **options)
    ways = {"projection": {"ls": "--", "mfc": "white"}, "retrained": {"ls": "-"}}
    for column, level in zip(axes.T, chosen):
        here, maxima = prunings[prunings.level == level], theory[theory.level == level]
        for mask, style in _LOOKS.items():
            rows = here[here["mask"] == mask]
            predicted = maxima[maxima["mask"] == mask].ratio.mean()
            for ax, y in zip(column, ("test_error", "barrier")):
                for weights, more in ways.items():
                    look = style | more | {"label": f"{mask}, {weights}"}
                    mean_and_range(ax, rows[rows.weights == weights], "ratio", y, **look)
                line = dict(color=style["color"], lw=1.2, ls=":", label=f"{mask}, theory")
                ax.axvline(PERCENT * predicted, **line)
        threshold_line(column[0], plots.most_that_matches(tables["levels"], e))
        column[0].set_title(f"level {level} ({plots.density_at(tables['levels'], level)})")
        plots.error_axis(column[0])
        plots.barrier_axis(column[1], e)
        column[1].set(xlabel="pruned at once (%)", xlim=(0, 100))
    axes[0, 0].set_ylabel("test error (%)")
    axes[1, 0].set_ylabel("barrier to the solution\n(percentage points)")
    plots.legend_beside(axes[0, -1], fontsize="small")
    return figure


def maximum_ratios(tables: Tables, e: Experiment) -> Figure:
    """Maximum pruning ratios by level, predicted and measured, a panel for each mask. One marker
    for each seed.

    Bars of predictions run from half to twice the loss height, those of measurements to the next
    ratio of the sweep."""
    figure, axes = plots.panels(2, width=4.5, height=3.8, sharey=True)
    table, measured = predicted_and_measured(tables, e), measured_limits(tables, e)
    places = {level: at for at, level in enumerate(sorted(measured.level.unique()))}
    sources = {}
    for criterion in ("random subspace", "exact quadratic"):
        rows = table[table.criterion == criterion]
        sources[f"predicted, {criterion}"] = rows, ("low", "predicted", "high")
    for weights in ("projection", "retrained"):
        rows = measured[measured.weights == weights]
        sources[f"measured, {weights}"] = rows, ("ratio", "ratio", "above")
    looks = styles(sources)
    for ax, mask in zip(axes[0], MASKS):
        for index, (label, (rows, names)) in enumerate(sources.items()):
            rows = rows[rows["mask"] == mask]
            shift = 0.19 * (index - 1.5) + 0.04 * (rows.seed - rows.seed.mean())
            low, middle, high = (PERCENT * rows[name] for name in names)
            look = looks[label] | {"ls": "none", "elinewidth": 1, "label": label}
            bars = np.stack([middle - low, high - middle])
            ax.errorbar(rows.level.map(places) + shift, middle, bars, **look)
        ax.set(title=f"{mask} pruning", xlabel="level", ylim=(-3, 103))
        ax.set_xticks(range(len(places)), places)
    axes[0, 0].set_ylabel("maximum pruning ratio (%)")
    plots.legend_beside(axes[0, 1], fontsize="small")
    return figure


def ways_to_projections(tables: Tables, e: Experiment) -> Figure:
    """Left: curvature along the way to the projection, by level. Right: loss along that way at
    the densest level of the first seed, against the distance moved."""
    figure, axes = plots.panels(2, width=4.4, height=3.7)
    (left, right), ways = axes[0], tables["displacements"]
    places = {level: at for at, level in enumerate(sorted(ways.level.unique()))}
    densest = ways[(ways.level == min(places)) & (ways.seed == ways.seed.min())]
    once = ways[ways.t == 0]
    for shift, (mask, style) in zip((-0.12, 0.12), _LOOKS.items()):
        rows = once[once["mask"] == mask]
        at = rows.level.map(places) + shift + 0.05 * (rows.seed - rows.seed.mean())
        left.plot(at, rows.curvature, ls="none", alpha=0.8, label=f"{mask} pruning", **style)
        for _, way in densest[densest["mask"] == mask].groupby("draw"):
            right.plot(way.t * way.distance, way.loss, lw=1, **style)
    left.set(yscale="log", xlabel="level", ylabel="curvature along the way")
    left.set_xticks(range(len(places)), places)
    plots.error_axis(right, "train loss (nats)")
    right.set(xlabel="distance moved", title=f"level {min(places)}, one seed")
    left.legend()
    return figure
