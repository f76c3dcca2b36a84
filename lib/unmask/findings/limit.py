"""Finding 3: flatness at the end of training limits how much can be pruned at once.

Everything starts from solutions `w^(L)` of the last rewind step. Curvature is that of the train
loss on the first `curvature_samples` training samples, in evaluation mode, in the D weights that
survive at level L; biases and batch-norm parameters stay where they are. There are three answers:
the theory of random subspaces, the exact quadratic, and what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
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
from ..plots import DASHES, PERCENT, styles
from ..tables import Part, table
from ..verdicts import Claims, Tables, at_latest, barrier, by_seed, in_numbers
from ..verdicts import in_sublevel_set, interval, judge, settings_in_numbers, with_matching

MASKS = ("random", "magnitude")
CRITERIA = THEORY, QUADRATIC = "random subspace", "exact quadratic"
DRAWS = 8  # random masks whose displacements are compared with that of the magnitude mask
TRIED = 3  # of them, for which the largest ratio is searched
RESOLUTION = 0.05  # of that search
# How a spectrum may be read that has slightly negative eigenvalues, and of which matrix.
CLIPPED, ABSOLUTE = "clipped", "absolute"
MATRICES = HESSIAN, GAUSS_NEWTON = "hessian", "gauss-newton"
READINGS = {CLIPPED: HESSIAN, ABSOLUTE: HESSIAN, GAUSS_NEWTON: GAUSS_NEWTON}
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

    def where(self) -> tuple:
        """Where to differentiate: the network with these weights, in evaluation mode, the mask and
        the sample."""
        unmask.networks.load_state(self.lab.network, self.state)
        return self.lab.network.eval(), self.mask, self.sample

    def operator(self, matrix: str = HESSIAN):
        """The Hessian or its Gauss-Newton part, to be multiplied with."""
        return unmask.curvature.hessian_operator(*self.where(), matrix)

    def exact(self, matrix: str) -> np.ndarray:
        """The whole of it."""
        return unmask.curvature.exact_hessian(*self.where(), matrix)

    def gradient(self) -> np.ndarray:
        """Of the train loss: small, but not zero, as weight decay pulls at every weight."""
        return unmask.curvature.loss_gradient(*self.where())

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
    _check_ellipsoid(values, distance, eps)
    sharp = np.where(values > 0, values, 0)
    return (weights * 2 * eps / (2 * eps + sharp * distance**2)).sum(-1)


def _check_ellipsoid(values, distance: float, eps: float) -> None:
    _check_eps(eps)
    if not distance >= 0:
        raise UnmaskError(f"distance={distance!r}: must be 0 or more")
    if values.size == 0 or not np.isfinite(values).all():
        raise UnmaskError("the spectrum is empty or has values that are not finite")


def first_order_rises(gradient: np.ndarray, weights: np.ndarray, order=None) -> np.ndarray:
    """What the gradient adds to the loss at the projection when m = 0 ... D weights go, (D + 1,),
    made never to fall: `-g' w` over the removed ones.

    `order`: which goes first, second, ...; by default, of random ones the mean."""
    rises = -gradient * weights
    rises = np.full(len(weights), rises.mean()) if order is None else rises[order]
    return np.maximum.accumulate(np.cumsum(np.concatenate([[0], rises])))


def max_pruning_ratio(spectrum, distances: np.ndarray, eps: float, rises=0.0) -> np.ndarray:
    """The largest m / D with `m <= predicted_dimension` at R(m), for each row of the spectrum.

    m rises, and the right side does not, as it falls in R and R grows with m: what is allowed ends
    at one m, found by bisection. Assumes a random subspace. An estimated spectrum must resolve
    eigenvalues of about `2 eps / R^2`, where flat ends.

    Args:
        distances: R for m = 0 ... D, (D + 1,); of `random_distances` or `magnitude_distances`.
        rises: what the gradient takes of the height `eps` at each m; of `first_order_rises`.
    Raises UnmaskError: as `predicted_dimension`, or the distances fall or do not fit the
    dimensions."""
    size = len(distances) - 1
    heights = eps - np.broadcast_to(rises, size + 1)
    _check_ellipsoid(spectrum.values, distances[0], eps)
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
            fits = heights[m] > 0 and m <= (1 + 1e-9) * predicted_dimension(
                values, weights, distances[m], heights[m]
            )
            low, high = (m, high) if fits else (low, m)
        return low

    return np.array([allowed(*row) for row in zip(*spectrum)]) / size


# The quadratic in the axial subspace itself.


def convexify(
    hessian: np.ndarray, values: np.ndarray, vectors: np.ndarray, reading: str, cutoff: float = 1e-8
) -> np.ndarray:
    """The Hessian with its eigenvalues raised to at least `cutoff` times the largest; where it is
    read as "absolute", negative ones to their absolute value.

    A quadratic with negative curvature has no minimum. Here such directions are almost flat
    instead: almost free, as in the theory. The result is nowhere below the quadratic of `hessian`,
    so what it allows, that allows too.

    Args:
        values, vectors: its eigenvalues, rising, and eigenvectors.
    Raises Degenerate: no eigenvalue is positive."""
    least = cutoff * values[-1]
    if least <= 0:
        said = f"no direction has positive curvature (largest eigenvalue {values[-1]:.3g})"
        raise Degenerate(said)
    # Add along each eigenvector what its eigenvalue lacks.
    wanted = np.maximum(np.abs(values) if reading == ABSOLUTE else values, least)
    low = wanted > values
    raised = vectors[:, low] * np.sqrt(wanted[low] - values[low])
    convex = raised @ raised.T
    convex += hessian
    return convex


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
        said = "the Hessian is not positive definite: take that of convexify"
        raise UnmaskError(said) from None
    squares = (weights[backwards] @ factor)[::-1] ** 2
    return np.concatenate([[0], np.cumsum(squares / 2)])


def largest_ratio(rises: np.ndarray, eps: float) -> float:
    """The m / D up to which the rise, of `least_rises`, is at most `eps`.
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


def _solved(e: Experiment, seed: int, level: int):
    return [place(e, "imp", seed, e.latest, level)]


def _products(e: Experiment, seed: int, level: int) -> float:
    # the exact matrices of a network that is small enough, or estimates
    exact = EXACT_UP_TO * (1 - e.prune_fraction) ** level
    estimated = e.lanczos_probes * e.lanczos_steps
    small = e.known_network.signals
    return 2 * 4 * e.curvature_samples * (exact if small else estimated)


def _matrices(e: Experiment, seed: int, level: int) -> float:
    # of float64: an exact matrix, its eigenvectors, and what is made from the two
    size = EXACT_UP_TO * (1 - e.prune_fraction) ** level
    return 4 * 8 * size**2


_COSTS = dict(passes=_products, memory=_matrices)


@table(_KEYS, reads=_READS, tensors=True, levels="limit_levels", needs=_solved, **_COSTS)
def curvature(lab, seed, level) -> dict:
    """Curvature at one solution, which several tables share. All float64:

    * "MATRIX/0.values", "MATRIX/0.weights": the exact spectrum, with N in place of 0 by N Lanczos
      steps. MATRIX is "hessian" or "gauss-newton".
    * "READING/KIND": `least_rises` when weights are removed in that order; READING of `READINGS`,
      KIND of `MASKS`.
    * "gradient": of the train loss, (D,).

    An exact matrix costs D times as much as one product with it, and D^2 numbers: it is computed
    for at most `EXACT_UP_TO` survivors. Estimates stand in for it where there is none. For the
    first seed's sparsest level there are two, to be compared with it and with each other, by
    products with the exact matrix."""
    import torch
    from scipy.sparse.linalg import aslinearoperator

    e, solution = lab.experiment, Solution(lab, seed, level)
    found = {"gradient": solution.gradient()}
    compared = seed == e.first_seed and level == e.limit_levels[-1]
    small = len(solution.weights) <= EXACT_UP_TO
    for matrix in MATRICES:
        exact = solution.exact(matrix) if small else None
        if compared or not small:
            stops = (e.lanczos_steps, 2 * e.lanczos_steps)[: 2 if compared else 1]
            operator = aslinearoperator(exact) if small else solution.operator(matrix)
            draws = unmask.train.generator(seed, "spectrum", level)
            estimate = unmask.curvature.spectral_densities
            for steps, spectrum in zip(stops, estimate(operator, e.lanczos_probes, stops, draws)):
                found[f"{matrix}/{steps}.values"] = spectrum.values
                found[f"{matrix}/{steps}.weights"] = spectrum.weights
        if small:
            values, vectors = scipy.linalg.eigh(exact)
            found[f"{matrix}/0.values"] = values[None]
            found[f"{matrix}/0.weights"] = np.ones((1, len(values)))
            for reading in (name for name, of in READINGS.items() if of == matrix):
                found |= _rises(solution, exact, values, vectors, reading)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def _rises(solution: Solution, matrix, values, vectors, reading: str) -> dict[str, np.ndarray]:
    try:
        convex = convexify(matrix, values, vectors, reading)
    except Degenerate:  # of a dead network: nothing rises, whatever is removed
        return {f"{reading}/{kind}": np.zeros(len(values) + 1) for kind in MASKS}
    weights, order = solution.weights, solution.order
    return {f"{reading}/{kind}": least_rises(convex, weights, order(kind)) for kind in MASKS}


def _curved(e: Experiment, seed: int, level: int):
    return [*_solved(e, seed, level), Part("curvature", (seed, level))]


def _spectra(lab, seed: int, level: int) -> tuple[dict, dict]:
    """The spectra by matrix and number of Lanczos steps (0: exact), and all that is stored."""
    found = {n: tensor.numpy() for n, tensor in curvature.read(lab, (seed, level)).items()}
    spectra, steps = {}, lab.experiment.lanczos_steps
    for matrix, taken in product(MATRICES, (0, steps, 2 * steps)):
        name = f"{matrix}/{taken}"
        if f"{name}.values" in found:
            pair = found[f"{name}.values"], found[f"{name}.weights"]
            spectra[matrix, taken] = unmask.curvature.Spectrum(*pair)
    return spectra, found


@table(_KEYS, reads=_READS, levels="limit_levels", needs=_curved)
def spectra(lab, seed, level) -> pd.DataFrame:
    """The eigenvalues at one solution, by rank.

    Columns: matrix ("hessian" or "gauss-newton"), steps (of Lanczos; 0: exact), rank (how many
    eigenvalues are at least this large, from 1 to D, evenly spaced on a log scale), eigenvalue
    (nats per squared weight)."""
    parts = []
    ranks = np.unique(np.geomspace(1, lab.survivors(level), 120).round())
    for (matrix, steps), (values, weights) in _spectra(lab, seed, level)[0].items():
        order = np.argsort(-values, axis=None)
        counted = np.cumsum(weights.ravel()[order]) / len(values)
        at = np.searchsorted(counted, ranks * (1 - 1e-9)).clip(max=values.size - 1)
        columns = {"rank": ranks.astype(int), "eigenvalue": values.ravel()[order][at]}
        parts.append(pd.DataFrame({"matrix": matrix, "steps": steps} | columns))
    return pd.concat(parts, ignore_index=True)


@table(_KEYS, reads=_READS, levels="limit_levels", needs=_curved)
def curvatures(lab, seed, level) -> pd.DataFrame:
    """The spectra at one solution in a few numbers.

    Columns: matrix ("hessian" or "gauss-newton"), steps (of Lanczos; 0: exact), dimensions (D),
    largest, smallest (eigenvalues), trace, trace_error (standard error over probes), negative (how
    many eigenvalues are), norm (of the surviving weights)."""
    rows, size = [], lab.survivors(level)
    norm = np.linalg.norm(Solution(lab, seed, level).weights)
    for (matrix, steps), spectrum in _spectra(lab, seed, level)[0].items():
        trace, error = spectrum.estimate(lambda values: values)
        negative, _ = spectrum.estimate(lambda values: values < 0)
        ends = spectrum.values.max(), spectrum.values.min()
        rows.append((matrix, steps, size, *ends, trace, error, negative, norm))
    columns = ["matrix", "steps", "dimensions", "largest", "smallest", "trace", "trace_error"]
    return pd.DataFrame(rows, columns=[*columns, "negative", "norm"])


@table(_KEYS, reads=(*_READS, "loss_height"), levels="limit_levels", needs=_curved)
def predictions(lab, seed, level) -> pd.DataFrame:
    """The predicted maximum pruning ratio at one solution.

    Columns: criterion (of `CRITERIA`), mask (of `MASKS`), reading (of `READINGS`), gradient (does
    its first-order rise count?), steps (of Lanczos; 0: exact), height (multiple of the experiment's
    loss height), ratio, error (its standard error over probes)."""
    spectra, found = _spectra(lab, seed, level)
    rows, solution = [], Solution(lab, seed, level)
    for height in HEIGHTS:
        eps = height * lab.experiment.loss_height
        for about, each in _theory(solution, spectra, found["gradient"], eps):
            for steps, ratios in each:
                error = ratios.std(ddof=1) / len(ratios) ** 0.5 if len(ratios) > 1 else np.nan
                rows.append((THEORY, *about, steps, height, ratios.mean(), error))
        for mask, reading in product(MASKS, READINGS):
            if (name := f"{reading}/{mask}") in found:
                ratio = largest_ratio(found[name], eps)
                rows.append((QUADRATIC, mask, reading, False, 0, height, ratio, np.nan))
    columns = ["criterion", "mask", "reading", "gradient", "steps", "height", "ratio", "error"]
    return pd.DataFrame(rows, columns=columns)


def _theory(solution: Solution, spectra: dict, gradient: np.ndarray, eps: float):
    """For each mask, reading, and with the gradient or not: these three, and by each spectrum of
    the matrix that is read the steps of Lanczos and `max_pruning_ratio`."""
    weights = solution.weights
    distances = dict(zip(MASKS, (random_distances(weights), magnitude_distances(weights))))
    orders = None, solution.order("magnitude")
    linear = {m: first_order_rises(gradient, weights, order) for m, order in zip(MASKS, orders)}
    for mask, reading, counts in product(MASKS, READINGS, (False, True)):
        rises, each = linear[mask] if counts else 0.0, []
        for (matrix, steps), (values, shares) in spectra.items():
            if matrix == READINGS[reading]:
                values = np.abs(values) if reading == ABSOLUTE else values
                spectrum = unmask.curvature.Spectrum(values, shares)
                each.append((steps, max_pruning_ratio(spectrum, distances[mask], eps, rises)))
        yield (mask, reading, counts), each


PROBES, STEPS = 2, 80  # of Lanczos, for a quick look
AT_MOST = 2e9  # bytes that its vectors may take; of a large network it takes fewer steps


@table(
    ("seed",),
    asked=True,
    reads=("curvature_samples", "loss_height"),
    passes=lambda e, seed: 2 * 4 * e.curvature_samples * PROBES * STEPS,
    needs=lambda e, seed: _solved(e, seed, 0),
)
def dense_limits(lab, seed) -> pd.DataFrame:
    """How much of the dense solution may go at once by the theory: a quick look, by estimates.

    Columns: as "predictions" has them, of one criterion and one height."""
    solution, rows = Solution(lab, seed, 0), []
    steps = int(np.clip(AT_MOST / (8 * PROBES * lab.total), 2, STEPS))
    stops, spectra, gradient = (steps // 2, steps), {}, solution.gradient()
    for matrix in MATRICES:
        operator, draws = solution.operator(matrix), unmask.train.generator(seed, "spectrum", 0)
        estimates = unmask.curvature.spectral_densities(operator, PROBES, stops, draws)
        spectra |= {(matrix, steps): found for steps, found in zip(stops, estimates)}
    for about, each in _theory(solution, spectra, gradient, lab.experiment.loss_height):
        rows += [(*about, steps, ratios.mean()) for steps, ratios in each]
    return pd.DataFrame(rows, columns=["mask", "reading", "gradient", "steps", "ratio"])


@table(
    _KEYS,
    reads=("rewind_steps", "curvature_samples", "prune_fraction"),
    passes=lambda e, *keys: 10 * (1 + DRAWS) * e.curvature_samples,
    levels="limit_levels",
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
    masks = [solution.pruned(kind, ratio, draw) for kind, draw in cases]
    ends = [pruning.apply(mask, solution.state) for mask in masks]
    ways = [solution.weights - pruning.surviving(end, solution.mask) for end in ends]
    curved = unmask.curvature.curvature_along(solution.operator(), np.stack(ways, axis=1))
    grid = np.linspace(0, 1, 6)
    for (kind, draw), end, way, along in zip(cases, ends, ways, curved):
        points = (unmask.barriers.interpolate(solution.state, end, float(t)) for t in grid)
        about = {"mask": kind, "draw": draw, "distance": np.linalg.norm(way), "curvature": along}
        losses = {"t": grid, "loss": [solution.loss(point) for point in points]}
        parts.append(pd.DataFrame(about | losses))
    return pd.concat(parts, ignore_index=True)


def climb(ratios, low: float = 0.0):
    """Ratios to try one after the other, a generator that is told whether each has passed: the
    given ones up to the first that does not, then half-way between that and the last that has
    (`low`, if none of them has), until `RESOLUTION` is reached."""
    high = 1.0
    for ratio in ratios:
        if not (yield ratio):
            high = ratio
            break
        low = ratio
    while high - low > RESOLUTION + 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if (yield middle) else (low, middle)


# Is a point of the pruned network's axial subspace in the connected sublevel set of the solution,
# and does training from the rewind point find it?
EXISTS, FINDS = "exists", "finds"


def _searches(e: Experiment) -> float:
    # of magnitude pruning most ratios pass, of random pruning few; what training finds is there
    return 1.5 * (1 + TRIED) * (2 + len(e.prune_ratios) / 2)


@table(
    _KEYS,
    reads=("rewind_steps", "prune_ratios", "barrier_points", "epsilon", "lmc_threshold"),
    steps=lambda e, *keys: _searches(e) * (e.steps - e.latest),
    passes=lambda e, *keys: _searches(e) * e.barrier_points * e.evaluated[0],
    levels="limit_levels",
    needs=_solved,
)
def prunings(lab, seed, level) -> pd.DataFrame:
    """One solution pruned at once. How much can go before training from the rewind point no longer
    ends in the solution's connected sublevel set (no more than epsilon worse, no barrier between)?
    And beyond that, as long as another point of the set can be found in the pruned axial subspace?
    Ratios are tried as `climb` says.

    Columns: mask (one of `MASKS`), draw (of `TRIED` random masks), ratio, weights, test_error,
    solution_error, barrier (test error, to the solution), distance (from the solution to its
    projection). `weights` is "retrained" (from the rewind point), "projection" or "fine-tuned" (the
    projection, trained within the mask at the last learning rate: tried where it is not in the set
    itself)."""
    e, search = lab.experiment, _Search(lab, seed, level)
    variants = [("magnitude", 0), *(("random", draw) for draw in range(TRIED))]
    # What training finds.
    found = search.run({variant: climb(e.prune_ratios) for variant in variants}, search.retrain)
    # What is there beyond it.
    further = {}
    for variant, passed in found.items():
        low = max((ratio for ratio, inside in passed.items() if inside), default=0.0)
        above = min((ratio for ratio, inside in passed.items() if not inside), default=1.0)
        ratios = [above, *(ratio for ratio in e.prune_ratios if ratio > above)]
        further[variant] = climb(ratios if above < 1 else [], low)
    search.run(further, search.look_nearby)
    return pd.DataFrame(search.rows, columns=_ROW)


class _Search:
    """Networks of one solution's pruned axial subspaces, and whether they are in its connected
    sublevel set."""

    def __init__(self, lab, seed: int, level: int):
        self.lab, self.latest, self.rows = lab, lab.experiment.latest, []
        self.solution = Solution(lab, seed, level)
        self.start = lab.rewind_point(seed, self.latest)
        self.order = seed, "order", level, "pruned"

    def run(self, searches: dict, look: Callable) -> dict[tuple, dict[float, bool]]:
        """Follow the searches, of each mask and draw, side by side: by these, the ratios that were
        tried and whether they passed."""
        tried = {variant: {} for variant in searches}
        asked = {variant: next(search, None) for variant, search in searches.items()}
        while cases := [(*variant, ratio) for variant, ratio in asked.items() if ratio is not None]:
            for (*variant, ratio), passed in zip(cases, look(cases)):
                variant = tuple(variant)
                tried[variant][ratio] = passed
                try:
                    asked[variant] = searches[variant].send(passed)
                except StopIteration:
                    asked[variant] = None
        return tried

    def retrain(self, cases: list[tuple]) -> list[bool]:
        """Does training from the rewind point end in the set?"""
        masks = [self.mask(case) for case in cases]
        starts = [unmask.train.Start(self.start, mask, self.order) for mask in masks]
        ends = self.lab.trained(starts, self.latest)
        return [self.inside(case, "retrained", end) for case, end in zip(cases, ends)]

    def look_nearby(self, cases: list[tuple]) -> list[bool]:
        """Is the projection in the set, or what it is trained to within the mask?"""
        masks = {case: self.mask(case) for case in cases}
        apply, state = unmask.pruning.apply, self.solution.state
        near = {case: apply(mask, state) for case, mask in masks.items()}
        passed = {case: self.inside(case, "projection", near[case]) for case in cases}
        left = [case for case in cases if not passed[case]]
        starts = [unmask.train.Start(near[case], masks[case], self.order) for case in left]
        ends = self.lab.trained(starts, self.latest, fine_tune=True)
        passed |= {case: self.inside(case, "fine-tuned", end) for case, end in zip(left, ends)}
        return [passed[case] for case in cases]

    def mask(self, case: tuple):
        kind, draw, ratio = case
        return self.solution.pruned(kind, ratio, draw)

    def inside(self, case: tuple, weights: str, state) -> bool:
        """Record a network; is it in the set?"""
        path = self.lab.path(self.solution.state, state)
        before, error = path.test_error.iloc[[0, -1]]
        projection = unmask.pruning.apply(self.mask(case), self.solution.state)
        left = unmask.pruning.surviving(projection, self.solution.mask)
        distance = np.linalg.norm(self.solution.weights - left)
        self.rows.append((*case, weights, error, before, barrier(path), distance))
        row = pd.DataFrame([self.rows[-1]], columns=_ROW)
        return bool(in_sublevel_set(row, self.lab.experiment).iloc[0])


_ROW = ["mask", "draw", "ratio", "weights", "test_error", "solution_error", "barrier", "distance"]


# Judging


def tried(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The table "prunings" with a column `passed`."""
    table = tables["prunings"]
    return table.assign(passed=in_sublevel_set(table, e))


def measured_limits(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The measured maximum pruning ratio: the end of the first run of ratios that pass. A point
    that training finds is there, so at least as much "exists" as it "finds".

    Columns: seed, level, mask, draw, way ("exists", "finds"), ratio (0 if there is none), above
    (the next ratio that was tried, or 1)."""
    keys, rows = ["seed", "level", "mask", "draw"], []
    for names, here in tried(tables, e).groupby(keys):
        for way in (EXISTS, FINDS):
            asked = here if way == EXISTS else here[here.weights == "retrained"]
            passed = asked.groupby("ratio").passed.any()
            above = passed.index[~passed].min() if not passed.all() else 1.0
            ratio = passed.index[passed.index < above].max() if passed.iloc[0] else 0.0
            rows.append((*names, way, ratio, above))
    return pd.DataFrame(rows, columns=[*keys, "way", "ratio", "above"])


def limits_by_mask(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The same, on average over random masks: columns seed, level, mask, way, ratio, above."""
    keys = ["seed", "level", "mask", "way"]
    return measured_limits(tables, e).groupby(keys)[["ratio", "above"]].mean().reset_index()


def best_of(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """For each combination of `keys`, the rows from the exact Hessian, else those by most steps
    of Lanczos."""
    rank = table.steps.where(table.steps > 0, table.steps.max() + 1)
    return table[rank == rank.groupby([table[key] for key in keys]).transform("max")]


def unresolved(predictions: pd.DataFrame, e: Experiment) -> pd.Series:
    """Is a prediction one of which little is known, as the sign of eigenvalues that Lanczos does
    not resolve decides it? So it is where reading them as flat and by absolute value differs by
    more than twice the tolerance, or where only one is known. (The Gauss-Newton part has no
    negative ones; what more steps would make of it is not asked.)"""
    keys = ["seed", "level", "mask", "criterion", "gradient"]
    signs = predictions[predictions.reading != GAUSS_NEWTON]
    read = signs.groupby(keys).predicted
    span = read.transform("max") - read.transform("min")
    wide = (read.transform("size") < 2) | (span > 2 * e.limit_tolerance)
    return (predictions.steps > 0) & wide.reindex(predictions.index, fill_value=False)


def predicted_and_measured(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Each prediction at the preset's loss height beside the measured maximum. The theory is about
    whether there is a point, so it is held against what "exists".

    Columns: seed, level, mask, criterion, reading, gradient, steps, predicted, error (its standard
    error over probes), low and high (at half and twice the height), ratio, above (see
    `limits_by_mask`), miss (distance of the prediction from where the maximum must lie, between
    `ratio` and `above`), unresolved."""
    keys = ["seed", "level", "mask", "criterion", "reading", "gradient", "steps"]
    known = tables["predictions"]
    # All seeds are judged by as many steps: by twice as many one is estimated, to compare with.
    # And earlier tables have a quadratic with a gradient, which was no bound.
    judged = (known.steps <= e.lanczos_steps) & ~(known.gradient & (known.criterion == QUADRATIC))
    best = best_of(known[judged], ["seed", "level", "criterion", "reading"])
    heights = best.pivot(index=keys, columns="height", values="ratio")
    heights["error"] = best[best.height == 1].set_index(keys).error
    heights = heights.rename(columns={0.5: "low", 1.0: "predicted", 2.0: "high"}).reset_index()
    measured = limits_by_mask(tables, e)
    measured = measured[measured.way == EXISTS]
    table = heights.merge(measured, on=keys[:3])
    miss = [table.ratio - table.predicted, table.predicted - table.above]
    miss = pd.concat(miss, axis=1).max(axis=1).clip(lower=0)
    table = table.assign(miss=miss, unresolved=unresolved(table, e))
    return table.rename_axis(columns=None)


def main_reading(table: pd.DataFrame) -> pd.DataFrame:
    """Of predictions, those by the reading that the claims are about: negative eigenvalues are
    flat, and the gradient is zero."""
    return table[(table.reading == CLIPPED) & ~table.gradient]


def flatness(tables: Tables) -> pd.DataFrame:
    """One row for each seed and level: curvature along the way to the magnitude projection, and
    along random ones.

    Columns: seed, level, magnitude, random (median over draws), flatter (log of how many times
    magnitude's is smaller; at most a million)."""
    ways = tables["displacements"]
    once = ways[ways.t == ways.t.min()]
    table = once.groupby(["seed", "level", "mask"]).curvature.median().unstack()
    table = table.rename_axis(columns=None).reset_index()
    times = table.random / table.magnitude.clip(lower=1e-6 * table.random.abs())
    return table.assign(flatter=np.log(times.where(times > 0)))


def one_shot_goals(tables: Tables, e: Experiment) -> pd.DataFrame:
    """From each solution, the ratio `goal` that would lead at once to the sparsest level that
    matches by iterating; only where there is one.

    Columns: seed, level, density, goal, and for magnitude pruning: above (what training finds no
    more, so that the maximum is below it), predicted (by the theory)."""
    chain = at_latest(with_matching(tables, e), e)
    sparsest = chain[chain.matching].groupby("seed").density.min()
    keys = ["seed", "level"]
    theory = main_reading(predicted_and_measured(tables, e))
    theory = theory[(theory.criterion == THEORY) & (theory["mask"] == "magnitude")]
    theory = theory.assign(predicted=theory.predicted.where(~theory.unresolved))
    measured = limits_by_mask(tables, e)
    found = measured[(measured["mask"] == "magnitude") & (measured.way == FINDS)]
    table = found[[*keys, "above"]].merge(theory[[*keys, "predicted"]], on=keys, how="left")
    table = table.merge(chain[[*keys, "density"]], on=keys, how="left")
    table = table.assign(goal=1 - table.seed.map(sparsest) / table.density)
    return table[table.goal > 0]


@judge("3", needs=("levels", "predictions", "displacements", "prunings"))
def verdicts(claims: Claims, tables: Tables, e: Experiment) -> None:
    flat, points = flatness(tables), "points"
    claim = "magnitude pruning moves along flatter directions than random pruning"
    unit, values = "log of how many times flatter", by_seed(flat, flat.flatter)
    claims.add("fig-ways", claim, unit, values, headline=True)
    measured = limits_by_mask(tables, e)
    ratio = measured.pivot(index=["seed", "level"], columns=["way", "mask"], values="ratio")
    claim = "magnitude pruning can remove more at once than random pruning"
    more = 100 * (ratio[EXISTS].magnitude - ratio[EXISTS].random)
    claims.add("fig-limits", claim, points, more.groupby("seed").mean())
    table = predicted_and_measured(tables, e)
    left = 100 * (e.limit_tolerance - table.miss).where(~table.unresolved)
    within = f"within {100 * e.limit_tolerance:.0f} points"
    words = {
        (THEORY, False): "the theory predicts the maximum",
        (THEORY, True): "beyond the paper: counting the gradient, the theory predicts it",
        (QUADRATIC, False): "beyond the paper: the exact quadratic predicts it",
    }
    for ((criterion, gradient), claim), mask in product(words.items(), MASKS):
        rows = (table.criterion == criterion) & (table["mask"] == mask)
        rows &= (table.reading == CLIPPED) & (table.gradient == gradient)
        if rows.any():
            claim = f"{claim} for {mask} pruning {within}"
            claims.add("fig-limits", claim, points, by_seed(table[rows], left[rows]))
    goals = one_shot_goals(tables, e)
    claim = "no one-shot pruning gets to the sparsest matching level of IMP"
    for column, words in (("above", "measured"), ("predicted", "by the theory")):
        short = by_seed(goals, 100 * (goals.goal - goals[column]))
        claims.add("fig-sweep", f"{claim}: {words}", points, short)
    more = 100 * (ratio[EXISTS] - ratio[FINDS])
    for mask in MASKS:
        values = more[mask].groupby("seed").mean()
        words = f"{mask} pruning: how much more is known to be removable than training finds"
        claims.measure("fig-limits", words, points, values)


# The numbers of its prose


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; shares in percent, NaN where there is none. `miss_theory_MASK`: of the main reading,
    `miss_gradient_MASK` where the gradient counts as well."""
    theory = predicted_and_measured(tables, e).query("criterion == @THEORY and not unresolved")
    theory, flat = theory[theory.reading == CLIPPED], flatness(tables)
    measured = limits_by_mask(tables, e)
    found = {
        "loss_height": 1000 * e.loss_height,
        "samples": e.curvature_samples,
        "probes": e.lanczos_probes,
        "lanczos_steps": e.lanczos_steps,
        "draws": TRIED,
        "limit_level": e.limit_levels[-1],
    } | in_numbers("flatter_by", by_seed(flat, flat.flatter), np.exp)
    for mask in MASKS:
        for name, counts in (("theory", False), ("gradient", True)):
            rows = theory[(theory["mask"] == mask) & (theory.gradient == counts)]
            found |= in_numbers(f"miss_{name}_{mask}", by_seed(rows, 100 * rows.miss))
        for way in (EXISTS, FINDS):
            rows = measured[(measured["mask"] == mask) & (measured.way == way)]
            found |= in_numbers(f"{way}_{mask}", by_seed(rows, 100 * rows.ratio))
    return settings_in_numbers(e) | found


def limits_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Maximum pruning ratios in percent, means over the seeds that have one: predicted, where that
    is resolved (in brackets: at half and twice the loss height; of an estimate, ± its standard
    error over probes), and measured."""

    def words(row) -> str:
        error = f" ± {row.error:.1f}" if np.isfinite(row.error) else ""
        return f"{row.predicted:.1f}{error} ({row.low:.1f} to {row.high:.1f})"

    table = main_reading(predicted_and_measured(tables, e))
    rows = table[~table.unresolved].groupby(["level", "mask", "criterion"])
    means = 100 * rows[["low", "predicted", "high", "error"]].mean()
    predicted = pd.Series(map(words, means.itertuples()), means.index, dtype=object).unstack()
    found = limits_by_mask(tables, e).groupby(["level", "mask", "way"]).ratio.mean() * 100
    found = found.map("{:.1f}".format).unstack().rename(columns="measured, {}".format)
    return predicted.reindex(found.index).join(found).fillna("-")


def readings_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """By how many points each prediction misses the measured maximum, by how its spectrum is read
    and whether the gradient's first-order rise counts: mean over seeds, and its interval."""
    table = predicted_and_measured(tables, e)
    rows = {}
    keys = ["criterion", "reading", "gradient", "mask"]
    for names, here in table[~table.unresolved].groupby(keys, sort=False):
        mean, low, high = interval(by_seed(here, 100 * here.miss))
        rows[names] = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    shown = pd.Series(rows).rename_axis(keys).unstack()
    return shown.rename(index={True: "counts", False: "zero"}).reindex(columns=list(MASKS))


def spectra_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Spectra of the Hessian in numbers, means over seeds, one row for each level and method."""
    table = tables["curvatures"].query("matrix == @HESSIAN")
    rows = table.assign(method=table.steps.map(_method)).groupby(["level", "method"])
    means = rows[["dimensions", "largest", "smallest", "negative", "trace", "trace_error"]].mean()
    errors = means.trace_error.map(" ± {:.1f}".format).where(rows.steps.first() > 0, "")
    return pd.DataFrame(
        {
            "seeds": rows.seed.nunique(),
            "dimensions": means.dimensions.astype(int),
            "largest": means.largest,
            "smallest": means.smallest.map("{:.1e}".format),
            "negative": means.negative.round().astype(int),
            "trace": means.trace.map("{:.1f}".format) + errors,
        }
    )


def _method(steps: int) -> str:
    return f"Lanczos, {steps} steps" if steps else "exact"


# Its figures: blue circles are random pruning, orange squares magnitude pruning

_LOOKS = {m: {n: look[n] for n in ("color", "marker")} for m, look in styles(MASKS).items()}


def hessian_spectra(tables: Tables, e: Experiment) -> Figure:
    """Eigenvalues by rank. Left: at each level of the first seed, exact, or by most steps of
    Lanczos where the network is too large. Right: the densest and the sparsest of these levels, by
    all that there are."""
    spectra = tables["spectra"].query("matrix == @HESSIAN and seed == seed.min()")
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
    """Every network that was tried: its barrier to the solution against the ratio pruned at once, a
    column for each level. Above: found by training from the rewind point; below: projections, and
    what they are fine-tuned to.

    Filled: in the solution's connected sublevel set. Vertical lines: the theory's maximum, where it
    is resolved."""
    table, theory = tried(tables, e), main_reading(predicted_and_measured(tables, e))
    theory = theory[(theory.criterion == THEORY) & ~theory.unresolved]
    chosen = sorted(table.level.unique())
    shared = dict(sharex=True, sharey=True)
    figure, axes = plots.panels(len(chosen), rows=2, width=4.2, height=2.7, **shared)
    retrained = table.weights == "retrained"
    kinds = {"found by training": table[retrained], "nearby": table[~retrained]}
    for column, level in zip(axes.T, chosen):
        for ax, (name, rows) in zip(column, kinds.items()):
            for mask, style in _LOOKS.items():
                look, color = dict(ms=4, ls="none", alpha=0.7), style["color"]
                here = rows[(rows.level == level) & (rows["mask"] == mask)]
                for passed, face in ((True, color), (False, "none")):
                    some = here[here.passed == passed]
                    label = f"{mask}, {'in the set' if passed else 'not'}"
                    look |= dict(marker=style["marker"], mec=color, mfc=face, label=label)
                    ax.plot(PERCENT * some.ratio, PERCENT * some.barrier, **look)
                predicted = theory[(theory.level == level) & (theory["mask"] == mask)].predicted
                line = dict(color=color, lw=1.2, ls=":", label=f"{mask}, theory's maximum")
                ax.axvline(PERCENT * predicted.mean(), **line)
            plots.barrier_axis(ax, e)
            ax.set(xlim=(0, 100))
            if level == chosen[0]:
                ax.set_ylabel(f"barrier to the solution:\n{name} (points)", fontsize="small")
        column[0].set_title(f"level {level} ({plots.density_at(tables['levels'], level)})")
        column[1].set_xlabel("pruned at once (%)")
    plots.legend_beside(axes[0, -1], fontsize="small")
    return figure


_READ = {CLIPPED: "negative is flat", ABSOLUTE: "absolute values", GAUSS_NEWTON: "Gauss-Newton"}


def maximum_ratios(tables: Tables, e: Experiment) -> Figure:
    """Maximum pruning ratios by level, predicted and measured, a panel for each mask: mean over
    seeds, and its interval."""
    figure, axes = plots.panels(2, width=4.5, height=4.2, sharey=True)
    table, measured = predicted_and_measured(tables, e), limits_by_mask(tables, e)
    table = table.assign(value=table.predicted)
    measured = measured.assign(value=(measured.ratio + measured.above) / 2)
    places = {level: at for at, level in enumerate(sorted(measured.level.unique()))}
    sources = {}
    for way, words in ((EXISTS, "a point is there"), (FINDS, "training finds one")):
        sources[f"measured: {words}"] = measured[measured.way == way]
    theory, quadratic = (table[table.criterion == name] for name in CRITERIA)
    for reading, words in _READ.items():
        sources[f"theory, {words}"] = theory[(theory.reading == reading) & ~theory.gradient]
    sources["theory, with the gradient"] = theory[theory.gradient & (theory.reading == CLIPPED)]
    sources["exact quadratic"] = main_reading(quadratic)
    sources = {label: rows for label, rows in sources.items() if len(rows)}
    looks = styles(sources)
    for ax, mask in zip(axes[0], MASKS):
        for index, (label, rows) in enumerate(sources.items()):
            shift = 0.11 * (index - (len(sources) - 1) / 2)
            here = rows[rows["mask"] == mask].groupby("level").value
            ends = here.apply(interval)
            at = [places[level] + shift for level in ends.index]
            mean, low, high = (PERCENT * np.array(part) for part in zip(*ends))
            look = looks[label] | {"ls": "none", "elinewidth": 1.2, "label": label}
            ax.errorbar(at, mean, np.stack([mean - low, high - mean]), **look)
        ax.set(title=f"{mask} pruning", ylim=(-3, 103))
        ax.set_xticks(range(len(places)), [f"level {level}" for level in places])
        for border in range(1, len(places)):
            ax.axvline(border - 0.5, color="0.8", lw=1)
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
    for shift, (mask, style) in zip((-0.15, 0.15), _LOOKS.items()):
        rows = once[once["mask"] == mask]
        aside = (rows.seed - rows.seed.mean()) / max(1, rows.seed.max() - rows.seed.min())
        at = rows.level.map(places) + shift + 0.2 * aside
        left.plot(at, rows.curvature, ls="none", alpha=0.8, label=f"{mask} pruning", **style)
        for _, way in densest[densest["mask"] == mask].groupby("draw"):
            right.plot(way.t * way.distance, way.loss, lw=1, **style)
    left.set(yscale="log", xlabel="level", ylabel="curvature along the way")
    left.set_xticks(range(len(places)), places)
    plots.error_axis(right, "train loss (nats)")
    right.set(xlabel="distance moved", title=f"level {min(places)}, one seed")
    left.legend()
    return figure
