"""Finding 3: the theory against closed forms and Monte Carlo, the exact quadratic against direct
minimisation, tables against the networks they are about, verdicts from hand-made tables."""

from itertools import product
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

import unmask
from unmask import networks, pruning, tables
from unmask.curvature import Spectrum, spectral_densities
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.findings import limit
from unmask.findings.limit import Solution, convexify, largest_ratio, least_rises
from unmask.findings.limit import magnitude_distances, max_pruning_ratio, predicted_dimension
from unmask.findings.limit import random_distances
from unmask.lab import Lab
from unmask.train import Start, evaluate, generator, train


def exact(eigenvalues):
    """The spectrum that has these eigenvalues."""
    values = np.array(eigenvalues, float)[None]
    return Spectrum(values, np.ones_like(values))


def symmetric(eigenvalues):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    draws = np.random.default_rng(0).standard_normal((len(eigenvalues),) * 2)
    rotation = scipy.linalg.qr(draws)[0]
    return (rotation * eigenvalues) @ rotation.T


# The theory of random subspaces


def test_prediction_in_closed_form():
    eps = 0.5  # r_i^2 = 1 / lambda_i

    def predicted(eigenvalues, distance):
        return predicted_dimension(*exact(eigenvalues), distance, eps)

    # D r^2 / (r^2 + R^2)
    assert predicted(np.ones(300), 3.0) == pytest.approx([30])
    sharp_and_flat = np.repeat([100.0, 0.0], [20, 280])
    assert predicted(sharp_and_flat, 2.0) == pytest.approx([280 + 20 / 401])
    assert predicted([4.0], 0.0) == pytest.approx([1])
    below = [-3.0, -1e-9, 1e-7, 1.0]
    assert predicted(below, 1e6) == pytest.approx([2 + 1 / (1 + 1e5)], rel=1e-6)


@pytest.mark.parametrize("length", [0.5, 3.0, 40.0])
def test_ratio_for_equal_eigenvalues(length):
    """`rho = r^2 / (r^2 + rho W)` with `W = ||w||^2`: the root of a quadratic."""
    size, eigenvalue, eps = 1000, 2.0, 0.3
    weights = np.random.default_rng(0).standard_normal(size)
    weights *= length / np.linalg.norm(weights)
    r2, w2 = 2 * eps / eigenvalue, length**2
    rho = (-r2 + np.sqrt(r2**2 + 4 * w2 * r2)) / (2 * w2)
    spectrum = exact(np.full(size, eigenvalue))
    found = max_pruning_ratio(spectrum, random_distances(weights), eps)
    assert found == pytest.approx([np.floor(rho * size) / size], abs=1e-12)


BOTH = pytest.mark.parametrize("distances", [random_distances, magnitude_distances])


@BOTH
def test_ratio_for_few_sharp_and_the_rest_flat(distances):
    spectrum = exact(np.repeat([1e9, 0.0], [20, 280]))
    found = max_pruning_ratio(spectrum, distances(np.ones(300)), 0.01)
    assert found == pytest.approx([280 / 300])


@BOTH
def test_ratio_in_one_dimension_and_where_nothing_is_sharp(distances):
    cases = (1.0, 0.1, 0), (0.0, 5.0, 1), (-1.0, 5.0, 1), (1.0, 0.0, 1)
    for eigenvalue, weight, expected in cases:
        found = max_pruning_ratio(exact([eigenvalue]), distances(np.array([weight])), 0.1)
        assert found == [expected], (eigenvalue, weight)
    flat = exact(-np.linspace(0, 3, 50))
    assert max_pruning_ratio(flat, distances(np.linspace(1, 9, 50)), 1e-6) == [1]


def test_distances_are_those_of_the_projections():
    weights = np.random.default_rng(0).standard_normal(40)
    ordered = weights[np.abs(weights).argsort()]
    shortest, usual = magnitude_distances(weights), random_distances(weights)
    assert shortest == pytest.approx([np.linalg.norm(ordered[:m]) for m in range(41)])
    rng, removed = np.random.default_rng(1), np.zeros(40, bool)
    removed[:10] = True
    squares = [(weights[rng.permutation(removed)] ** 2).sum() for _ in range(4000)]
    assert usual[10] ** 2 == pytest.approx(np.mean(squares), rel=0.03)
    assert (shortest <= usual + 1e-12).all()


SPECTRA = st.lists(st.floats(-1, 100) | st.sampled_from([0.0, 1e-5, 1e3]), min_size=1, max_size=30)


@given(SPECTRA, st.integers(0, 1000), st.floats(1e-4, 10), st.floats(1.01, 100))
@settings(deadline=None)
def test_bisection_finds_the_largest_ratio_that_is_allowed(eigenvalues, seed, eps, factor):
    weights = np.random.default_rng(seed).standard_normal(len(eigenvalues)) * 3
    spectrum, both = exact(eigenvalues), []
    for distances in (random_distances(weights), magnitude_distances(weights)):
        most = [predicted_dimension(*spectrum, distance, eps)[0] for distance in distances]
        allowed = [m for m, dimension in enumerate(most) if m <= dimension * (1 + 1e-9)]
        assert allowed == list(range(len(allowed)))  # nothing beyond the first that is not
        found = max_pruning_ratio(spectrum, distances, eps)[0]
        assert found == allowed[-1] / len(eigenvalues)
        assert max_pruning_ratio(spectrum, distances, eps * factor)[0] >= found
        both.append(found)
    assert both[1] >= both[0]


def test_the_gradient_takes_from_the_height_and_never_gives_back():
    weights, gradient = np.array([1.0, -2.0, 3.0, 4.0]), np.array([-0.1, 0.1, 0.0, 0.3])
    # -g w: 0.1, 0.2, 0, -1.2
    rises = limit.first_order_rises(gradient, weights, np.array([3, 0, 1, 2]))
    assert rises == pytest.approx([0, 0, 0, 0, 0])  # the first removal gains more than others cost
    rises = limit.first_order_rises(gradient, weights, np.array([0, 1, 2, 3]))
    assert rises == pytest.approx([0, 0.1, 0.3, 0.3, 0.3])
    rises = limit.first_order_rises(-weights, weights)  # of random masks the mean
    assert rises == pytest.approx(7.5 * np.arange(5))
    # four flat directions: nothing may go where the height is used up
    spectrum, distances = exact([0.0] * 4), random_distances(weights)
    assert max_pruning_ratio(spectrum, distances, 1.0) == 1
    assert max_pruning_ratio(spectrum, distances, 1.0, np.array([0, 0.5, 0.9, 1.0, 2.0])) == 0.5


def test_ratio_from_a_quadrature_comes_close_to_that_from_the_eigenvalues():
    eigenvalues = np.concatenate([np.zeros(100), np.geomspace(1e-3, 10, 200)])
    operator = aslinearoperator(symmetric(eigenvalues))
    (spectrum,) = spectral_densities(operator, 10, [60], generator("probes"))
    distances = random_distances(np.random.default_rng(0).standard_normal(300))
    true = max_pruning_ratio(exact(eigenvalues), distances, 0.1)[0]
    rows = max_pruning_ratio(spectrum, distances, 0.1)
    assert rows.shape == (10,) and 0 < rows.std() < 0.05
    assert rows.mean() == pytest.approx(true, abs=0.02)


@pytest.mark.parametrize("eps", [0, -1, np.nan, np.inf])
def test_a_loss_rise_that_is_none_is_refused(eps):
    spectrum = exact([1.0, 2.0])
    for ask in (
        lambda: predicted_dimension(*spectrum, 1, eps),
        lambda: max_pruning_ratio(spectrum, random_distances(np.ones(2)), eps),
        lambda: largest_ratio(np.zeros(3), eps),
    ):
        with pytest.raises(UnmaskError, match="eps=.*positive and finite"):
            ask()


def test_bad_input_to_the_theory_is_refused():
    spectrum, distances = exact([1.0, 2.0]), random_distances(np.ones(2))
    with pytest.raises(UnmaskError, match="distance=-1"):
        predicted_dimension(*spectrum, -1, 0.1)
    for bad, given_distances, said in (
        (exact([]), distances[:1], "empty or has values that are not finite"),
        (exact([np.nan]), distances[:2], "empty or has values that are not finite"),
        (spectrum, random_distances(np.ones(3)), "3 dimensions: the spectrum has 2"),
        (spectrum, distances[::-1], "must not fall"),
    ):
        with pytest.raises(UnmaskError, match=said):
            max_pruning_ratio(bad, given_distances, 0.1)


# In 300 dimensions: eigenvalues at loss rise 1/2, so that r_i^2 = 1 / lambda_i.
ISOTROPIC, LOG_UNIFORM = np.ones(300), np.geomspace(1e-2, 1e3, 300)
SHARP_AND_FLAT = np.repeat([100, 0.1], [20, 280])


def hit_rates(eigenvalues, distance, draws=60):
    """How often a random subspace of codimension m = 0 ... D through a random point meets the
    sublevel set.

    The subspace is `{x: C x = C u}` for m rows of a Gaussian C; the least of `1/2 x' H x` on it is
    `1/2 u' C' (C H^-1 C')^-1 C u`. By the Cholesky factor of `C H^-1 C'`, one C gives all m.
    """
    size, rng, hits = len(eigenvalues), np.random.default_rng(0), 0
    for draw in range(draws):
        rows, point = rng.standard_normal((size, size)), rng.standard_normal(size)
        point *= distance / np.linalg.norm(point)
        factor = np.linalg.cholesky((rows / eigenvalues) @ rows.T)
        parts = scipy.linalg.solve_triangular(factor, rows @ point, lower=True)
        least = np.cumsum(parts**2) / 2
        hits = hits + np.concatenate([[True], least <= 0.5])
        if draw == 0:  # the same by least squares in a basis of the subspace
            root, basis = np.sqrt(eigenvalues), scipy.linalg.null_space(rows[:100])
            best = np.linalg.lstsq(root[:, None] * basis, -root * point)[0]
            direct = ((root * (point + basis @ best)) ** 2).sum() / 2
            assert least[99] == pytest.approx(direct, rel=1e-6)
    return hits / draws


@pytest.mark.parametrize(
    "eigenvalues, distance, predicted, observed",
    [
        (ISOTROPIC, 3.0, 30, 34),
        (LOG_UNIFORM, 1.0, 120, 137),
        (LOG_UNIFORM, 3.0, 65, 72),
        (SHARP_AND_FLAT, 3.0, 147, 234),
    ],
)
def test_prediction_against_random_subspaces(eigenvalues, distance, predicted, observed):
    """The prediction is from below: 10 to 15 % too low where the spectrum has one scale or evenly
    many, and little more than half of what is possible for a few sharp directions among flat ones.
    """
    rates = hit_rates(eigenvalues, distance)
    found = predicted_dimension(*exact(eigenvalues), distance, 0.5)[0]
    assert found == pytest.approx(predicted, abs=0.6)
    threshold = np.flatnonzero(rates >= 0.5)[-1]
    assert threshold == pytest.approx(observed, abs=4)
    assert found < threshold
    assert rates[int(0.95 * found)] >= 0.8
    assert rates[min(300, int(1.4 * threshold))] <= 0.1


def test_prediction_does_not_hold_where_the_displacement_is_perpendicular():
    """The projection is the nearest point of its axial subspace. With random directions in place of
    axes: from there nearly no codimension is allowed, where 65 would be for a random point."""
    rng, misses = np.random.default_rng(0), 0
    for _ in range(30):
        rows = np.linalg.qr(rng.standard_normal((300, 10)))[0].T
        point = rows.T @ rng.standard_normal(10)
        point *= 3 / np.linalg.norm(point)
        seen = rows @ point
        least = seen @ np.linalg.solve((rows / LOG_UNIFORM) @ rows.T, seen) / 2
        misses += least > 0.5
    assert misses >= 27
    assert predicted_dimension(*exact(LOG_UNIFORM), 3.0, 0.5)[0] > 60


# The exact quadratic


def minimised(hessian, weights, removed):
    """The least of `1/2 d' H d` over d that cancels the removed weights, by least squares on a
    square root of H."""
    values, vectors = np.linalg.eigh(hessian)
    root = np.sqrt(values.clip(0))[:, None] * vectors.T
    target, free = root[:, removed] @ weights[removed], root[:, ~removed]
    best = np.linalg.lstsq(free, target)[0] if free.size else np.zeros(0)
    return ((target - free @ best) ** 2).sum() / 2


@given(st.integers(1, 12), st.integers(0, 10_000))
@settings(deadline=None)
def test_least_rise_equals_direct_minimisation(size, seed):
    rng = np.random.default_rng(seed)
    factor, weights = rng.standard_normal((size + 3, size)), rng.standard_normal(size)
    hessian, order = factor.T @ factor, rng.permutation(size)
    rises = least_rises(hessian, weights, order)
    assert rises.shape == (size + 1,) and rises[0] == 0 and (np.diff(rises) >= 0).all()
    for m in range(size + 1):
        removed = np.isin(np.arange(size), order[:m])
        assert rises[m] == pytest.approx(minimised(hessian, weights, removed), rel=1e-6, abs=1e-10)
    assert rises[size] == pytest.approx(weights @ hessian @ weights / 2)
    middle = (rises[size // 2] + rises[size // 2 + 1]) / 2
    assert largest_ratio(rises, middle) == size // 2 / size
    assert largest_ratio(rises, 2 * rises[-1]) == 1 and largest_ratio(rises, rises[-1]) == 1


def test_least_rise_equals_the_schur_complement():
    rng = np.random.default_rng(0)
    factor, w, order = rng.standard_normal((30, 20)), rng.standard_normal(20), rng.permutation(20)
    h = factor.T @ factor
    rises = least_rises(h, w, order)
    for m in range(1, 20):
        p, k = order[:m], order[m:]
        inverse = np.linalg.pinv(h[np.ix_(k, k)])
        schur = h[np.ix_(p, p)] - h[np.ix_(p, k)] @ inverse @ h[np.ix_(k, p)]
        assert rises[m] == pytest.approx(w[p] @ schur @ w[p] / 2)
    # of a diagonal one nothing can make up for what is removed
    diagonal = np.arange(1.0, 21)
    alone = np.cumsum((diagonal * w**2)[order]) / 2
    assert least_rises(np.diag(diagonal), w, order)[1:] == pytest.approx(alone)


@pytest.mark.parametrize("negative", [0, 10])
def test_flat_and_negative_directions_are_free(negative):
    """40 dimensions, of which 15 are sharp, and the others are flat, or some of them negative."""
    flat, falling = np.zeros(25 - negative), -np.linspace(0.1, 3, negative)
    eigenvalues = np.concatenate([np.linspace(1, 5, 15), flat, falling])
    hessian, rng = symmetric(eigenvalues), np.random.default_rng(0)
    convex = convexify(hessian, *scipy.linalg.eigh(hessian), "clipped")
    raised = np.sort(np.where(eigenvalues > 0, eigenvalues, 5e-8))
    np.testing.assert_allclose(np.linalg.eigvalsh(convex), raised, atol=1e-12)
    assert np.linalg.eigvalsh(convex - hessian).min() > -1e-12  # nowhere below
    absolute = convexify(hessian, *scipy.linalg.eigh(hessian), "absolute")
    read = np.sort(np.where(np.abs(eigenvalues) > 0, np.abs(eigenvalues), 5e-8))
    np.testing.assert_allclose(np.linalg.eigvalsh(absolute), read, atol=1e-12)

    weights, order = rng.standard_normal(40), rng.permutation(40)
    rises, clipped = least_rises(convex, weights, order), symmetric(eigenvalues.clip(0))
    for m in range(0, 41, 4):
        removed = np.isin(np.arange(40), order[:m])
        assert rises[m] == pytest.approx(minimised(clipped, weights, removed), rel=1e-4, abs=1e-4)
    assert rises[25] < 1e-4 < 1e-2 < rises[27]  # as many can go as are not sharp, and no more


def test_convexify_leaves_a_positive_definite_hessian_as_it_is():
    hessian = symmetric(np.geomspace(1e-3, 10, 30))
    values, vectors = scipy.linalg.eigh(hessian)
    assert np.array_equal(convexify(hessian, values, vectors, "clipped"), hessian)
    with pytest.raises(UnmaskError, match="no direction has positive curvature"):
        convexify(-hessian, -values[::-1], vectors, "clipped")


def test_bad_input_to_the_quadratic_is_refused():
    for order in ([0, 0, 1], [0, 1], [1, 2, 3]):
        with pytest.raises(UnmaskError, match="each of the 3 weights once"):
            least_rises(np.eye(3), np.ones(3), np.array(order))
    with pytest.raises(UnmaskError, match="convexify"):
        least_rises(np.diag([1.0, -1.0, 1.0]), np.ones(3), np.arange(3))


# What is measured


@pytest.fixture(scope="module")
def lab(smoke_store):
    return Lab(experiment("smoke"), smoke_store)


def table(lab, name):
    return unmask.table(name, lab.experiment, lab.store, 1)


@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_the_magnitude_order_gives_the_masks_that_pruning_gives(lab, ratio):
    solution = Solution(lab, 0, 2)
    keep = len(solution.weights) - round(ratio * len(solution.weights))
    expected = pruning.prune_magnitude(solution.state, solution.mask, keep)
    found = solution.pruned("magnitude", ratio)
    assert all(torch.equal(kept, expected[name]) for name, kept in found.items())


def test_random_orders_repeat_differ_by_draw_and_nest(lab):
    solution = Solution(lab, 0, 2)
    assert np.array_equal(solution.order("random"), solution.order("random"))
    assert not np.array_equal(solution.order("random"), solution.order("random", draw=1))
    some, more = (solution.pruned("random", ratio) for ratio in (0.2, 0.8))
    assert all((more[name] <= some[name]).all() for name in some)
    assert all((some[name] <= solution.mask[name]).all() for name in some)
    assert pruning.survivors(more) == 1201 - round(0.8 * 1201)


def test_orders_name_survivors_as_masks_do():
    mask = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False, True])}
    order = Solution.order(SimpleNamespace(weights=np.array([3.0, -1.0, 2.0, 0.5])), "magnitude")
    assert order.tolist() == [3, 1, 2, 0]
    left = pruning.without(mask, order[:2])
    assert left["a"].tolist() == [[True, False], [False, True]]
    assert left["b"].tolist() == [False, False]
    assert pruning.surviving(left, mask).tolist() == [True, False, True, False]
    assert pruning.survivors(mask) == 4  # its argument is left alone


def test_stored_curvature_is_that_of_the_solution(lab):
    """Its trace is that of the matrix at the solution, estimated afresh from random signs."""
    found, solution = limit.curvature.read(lab, (1, 2)), Solution(lab, 1, 2)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (len(solution.weights), 16))
    for matrix in ("hessian", "gauss-newton"):
        # estimates: of the first seed only
        assert f"{matrix}/10.values" not in found
        assert {f"{matrix}/{n}.values" for n in (10, 20, 0)} <= set(
            limit.curvature.read(lab, (0, 2))
        )
        traces = (signs * solution.operator(matrix).matmat(signs)).sum(0)
        total = float((found[f"{matrix}/0.values"] * found[f"{matrix}/0.weights"]).sum())
        assert total == pytest.approx(traces.mean(), abs=5 * traces.std(ddof=1) / 4)
    assert found["gradient"].shape == (1201,)


def test_the_exact_quadratic_s_rises_are_stored_for_the_orders_that_are_measured(lab):
    found, solution = limit.curvature.read(lab, (1, 2)), Solution(lab, 1, 2)
    for reading, kind in product(limit.READINGS, limit.MASKS):
        rises = found[f"{reading}/{kind}"].numpy()
        assert rises.shape == (1202,) and rises[0] == 0 and (np.diff(rises) >= 0).all()
    for reading in limit.READINGS:  # all removed: half of w' H w, whatever the order
        last = [float(found[f"{reading}/{kind}"][-1]) for kind in limit.MASKS]
        assert last[0] == pytest.approx(last[1], rel=1e-6)
    assert solution.weights.shape == (1201,)


def test_a_network_that_is_too_large_has_estimates_alone(lab, monkeypatch):
    monkeypatch.setattr(limit, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(unmask.curvature, "exact_hessian", lambda *_: pytest.fail("computed"))
    found = limit.curvature(lab, 1, 0)
    names = {
        f"{m}/10.{part}" for m in ("hessian", "gauss-newton") for part in ("values", "weights")
    }
    assert set(found) == names | {"gradient"}
    assert found["hessian/10.weights"].sum(1).numpy() == pytest.approx(1876)


def test_what_is_computed_of_the_first_seed_alone_goes_by_another_name_for_another(lab):
    other, part = Lab(lab.experiment.but(first_seed=1, seeds=1), lab.store), ("curvature", (1, 2))
    assert tables.entry(lab, tables.Part(*part)) != tables.entry(other, tables.Part(*part))


def test_spectra_are_ranked_and_estimates_agree_at_the_top(lab):
    spectra = table(lab, "spectra")
    for _, rows in spectra.groupby(["seed", "level", "matrix", "steps"]):
        assert rows["rank"].is_monotonic_increasing and rows.eigenvalue.is_monotonic_decreasing
        assert rows["rank"].iloc[[0, -1]].tolist() == [1, 1201]
    found = np.sort(limit.curvature.read(lab, (0, 2))["hessian/0.values"].numpy()[0])[::-1]
    known = spectra.query("matrix == 'hessian' and seed == 0 and steps == 0")
    assert known.eigenvalue.tolist() == [found[rank - 1] for rank in known["rank"]]
    largest = table(lab, "curvatures").query("matrix == 'hessian' and seed == 0")
    largest = largest.set_index("steps").largest
    assert largest[20] == pytest.approx(largest[0], rel=1e-3)


def test_predictions_rise_with_the_loss_height(lab):
    predictions = table(lab, "predictions")
    keys = ["seed", "level", "criterion", "mask", "reading", "gradient", "steps"]
    for _, rows in predictions.groupby(keys):
        assert rows.sort_values("height").ratio.is_monotonic_increasing
        assert rows.ratio.between(0, 1).all()
    assert predictions[predictions.steps > 0].error.notna().all()


def test_displacements_start_at_the_solution_and_end_at_the_projection(lab):
    displacements, solution = table(lab, "displacements").query("seed == 1"), Solution(lab, 1, 2)
    rows = displacements[displacements["mask"] == "magnitude"].set_index("t")
    projection = pruning.apply(solution.pruned("magnitude", 0.2), solution.state)
    for t, state in ((0.0, solution.state), (1.0, projection)):
        assert rows.loss[t] == solution.loss(state)
    shortest = magnitude_distances(solution.weights)[round(0.2 * 1201)]
    assert rows.distance[0.0] == pytest.approx(shortest, rel=1e-6)
    random = displacements[displacements["mask"] == "random"].distance
    assert random.min() > rows.distance[0.0]  # the smallest weights are the shortest way


def test_prunings_say_what_training_and_evaluation_say(lab):
    e, solution = lab.experiment, Solution(lab, 0, 2)
    rows = table(lab, "prunings").query("seed == 0 and mask == 'random' and draw == 1")
    order, rate = (0, "order", 2, "pruned"), e.lr * e.lr_decay**2
    assert set(rows.weights) == {"retrained", "projection", "fine-tuned"}
    for row in rows.groupby("weights").first().reset_index().itertuples():
        mask = solution.pruned("random", row.ratio, draw=1)
        state = projection = pruning.apply(mask, solution.state)
        if row.weights == "retrained":
            start = Start(lab.rewind_point(0, 5), mask, order)
            state = train(e, lab.data.train, [start], 5)[0].states[e.steps]
        if row.weights == "fine-tuned":
            start = Start(projection, mask, order)
            state = train(e, lab.data.train, [start], 5, lr=rate)[0].states[e.steps]
        networks.load_state(lab.network, state)
        assert row.test_error == evaluate(lab.network, lab.data.test).error
        networks.load_state(lab.network, solution.state)
        assert row.solution_error == evaluate(lab.network, lab.data.test).error


def asked(search, passes):
    """The ratios that a search asks for, where those up to `passes` pass."""
    ratios, ratio = [], next(search, None)
    while ratio is not None:
        ratios.append(ratio)
        try:
            ratio = search.send(ratio <= passes)
        except StopIteration:
            ratio = None
    return ratios


@pytest.mark.parametrize(
    "passes, ratios",
    [
        (0.0, [0.2, 0.1, 0.05]),
        (0.31, [0.2, 0.4, 0.3, 0.35]),
        (0.51, [0.2, 0.4, 0.8, 0.6, 0.5, 0.55]),
        (1.0, [0.2, 0.4, 0.8, 0.9, 0.95]),
    ],
)
def test_ratios_are_tried_upwards_and_then_halved(passes, ratios):
    assert asked(limit.climb([0.2, 0.4, 0.8]), passes) == pytest.approx(ratios)


def test_a_search_that_goes_on_from_a_ratio_does_not_ask_again_what_is_known():
    assert asked(limit.climb([0.45, 0.8], low=0.4), 0.4) == [0.45]
    assert asked(limit.climb([], low=0.97), 1) == []


def test_each_level_s_spectrum_is_drawn():
    rows = [
        {"seed": 0, "level": level, "steps": 0, "rank": rank, "eigenvalue": 1 / rank / (level + 1)}
        for level in range(6)
        for rank in (1, 2, 4)
    ]
    figure = limit.hessian_spectra({"spectra": pd.DataFrame(rows).assign(matrix="hessian")}, E)
    assert len(figure.axes[0].lines) == 6
    plt.close(figure)


# Verdicts from hand-made tables

E = experiment(
    "miniature",
    prune_ratios=(0.2, 0.4, 0.5, 0.6, 0.8),
    limit_levels=(0, 1),
    epsilon=0.01,
    lmc_threshold=0.02,
    limit_tolerance=0.1,
    first_seed=0,
    seeds=3,
)


def made(
    passing=(("random", 0.2), ("magnitude", 0.4)),
    nearby=None,
    predicted=0.35,
    curvature=(("magnitude", 1.0), ("random", 9.0)),
    steps=0,
    absolute=None,
):
    """Of three seeds, levels 0 to 2 match, and the first two are looked at: ratios up to those in
    `passing` are found by training at once, and up to those in `nearby` there are other points;
    `predicted` is predicted, and `absolute` by absolute values."""
    cases = [(seed, level) for seed in range(3) for level in range(2)]
    keys = ["seed", "level"]
    levels = [
        (seed, level, 250, 0.5**level, 0.04 if level < 3 else 0.2, 0.9)
        for seed in range(3)
        for level in range(4)
    ]
    there = dict(nearby or passing)
    prunings = [
        (*case, mask, 0, ratio, weights, 0.045 if ratio <= limits[mask] else 0.06, 0.04, 0.0)
        for case in cases
        for weights, limits in (("retrained", dict(passing)), ("projection", there))
        for mask in limit.MASKS
        for ratio in E.prune_ratios
    ]
    theory, quadratic = "random subspace", "exact quadratic"
    predictions = [
        (*case, criterion, mask, reading, gradient, steps, height, ratio, 0.05 if steps else np.nan)
        for case in cases
        for mask in limit.MASKS
        for height in limit.HEIGHTS
        for gradient in (False, True)
        for reading in ("clipped", "absolute")
        for criterion in (theory, quadratic)
        for ratio in [absolute if reading == "absolute" and absolute else predicted]
    ]
    displacements = [
        (*case, mask, 0, value, t)
        for case in cases
        for mask, value in curvature
        for t in (0.0, 1.0)
    ]
    about = ["criterion", "mask", "reading", "gradient", "steps", "height"]
    columns = {
        "levels": ["rewind_step", "density", "test_error", "chance"],
        "prunings": ["mask", "draw", "ratio", "weights", "test_error", "solution_error", "barrier"],
        "predictions": [*about, "ratio", "error"],
        "displacements": ["mask", "draw", "curvature", "t"],
    }
    rows = levels, prunings, predictions, displacements
    return {
        name: pd.DataFrame(part, columns=keys + columns[name]) for name, part in zip(columns, rows)
    }


def limits(tables):
    found = limit.measured_limits(tables, E).set_index(["seed", "level", "mask", "draw", "way"])
    return found[["ratio", "above"]]


def test_the_measured_maximum_is_the_end_of_the_first_run_that_passes():
    hand_made = made()
    prunings = hand_made["prunings"]
    assert tuple(limits(hand_made).loc[0, 0, "random", 0, "finds"]) == (0.2, 0.4)
    assert tuple(limits(hand_made).loc[0, 0, "magnitude", 0, "finds"]) == (0.4, 0.5)
    # no longer connected at 0.4: what passes beyond that does not count
    away = (prunings["mask"] == "magnitude") & (prunings.ratio == 0.2)
    cut = hand_made | {"prunings": prunings.assign(barrier=prunings.barrier.where(~away, 0.02))}
    assert tuple(limits(cut).loc[0, 0, "magnitude", 0, "finds"]) == (0.0, 0.2)
    none = limits(hand_made | {"prunings": prunings.assign(test_error=0.5)})
    assert set(none.ratio) == {0.0} and set(none.above) == {0.2}
    every = limits(hand_made | {"prunings": prunings.assign(test_error=0.0)})
    assert set(every.ratio) == {0.8} and set(every.above) == {1.0}


def test_there_is_at_least_what_training_finds():
    found = limits(made(nearby=(("random", 0.5), ("magnitude", 0.2))))
    assert found.ratio[0, 0, "random", 0].to_dict() == {"exists": 0.5, "finds": 0.2}
    assert found.ratio[0, 0, "magnitude", 0].to_dict() == {"exists": 0.4, "finds": 0.4}


@pytest.mark.parametrize(
    "predicted, miss", [(0.3, 0), (0.2, 0), (0.4, 0), (0.1, 0.1), (0.55, 0.15)]
)
def test_a_prediction_misses_by_its_distance_to_where_the_maximum_must_lie(predicted, miss):
    found = limit.predicted_and_measured(made(predicted=predicted), E)
    assert found[found["mask"] == "random"].miss.to_numpy() == pytest.approx(miss)


def test_exact_spectra_come_before_estimates_and_more_steps_before_fewer():
    exactly = made()["predictions"]
    ten, twenty = (exactly.assign(steps=n, ratio=r) for n, r in ((10, 0.99), (20, 0.5)))
    keys = ["seed", "level", "criterion", "reading"]
    best = limit.best_of(pd.concat([ten, exactly, twenty]), keys)
    assert set(best.ratio) == {0.35}
    assert set(limit.best_of(pd.concat([ten, twenty]), keys).ratio) == {0.5}


def test_predictions_that_hang_on_unresolved_signs_decide_nothing():
    wide = limit.predicted_and_measured(made(steps=40, absolute=0.9), E)
    assert wide.unresolved.all()
    assert not limit.predicted_and_measured(made(steps=40, absolute=0.5), E).unresolved.any()
    assert not limit.predicted_and_measured(made(absolute=0.9), E).unresolved.any()  # exact
    shown = limit.verdicts(made(steps=40, absolute=0.9), E)
    assert [one.words() for one in shown.evidence[2:8]] == ["no seed has a case"] * 6
    alone = made(steps=40)
    predictions = alone["predictions"]
    alone["predictions"] = predictions[predictions.reading == "clipped"]
    assert limit.predicted_and_measured(alone, E).unresolved.all()


def test_all_seeds_are_judged_by_as_many_steps():
    tables = made(steps=E.lanczos_steps)
    once = tables["predictions"].query("seed == 0 and level == 1")
    twice = once.assign(steps=2 * E.lanczos_steps, ratio=0.9)
    tables["predictions"] = pd.concat([tables["predictions"], twice])
    found = limit.predicted_and_measured(tables, E)
    assert set(found.steps) == {E.lanczos_steps} and set(found.predicted) == {0.35}
    # the quadratic is that of a gradient of zero
    assert not found[found.criterion == limit.QUADRATIC].gradient.any()


def test_the_table_of_limits_says_how_sure_an_estimate_is_and_leaves_out_what_is_unresolved():
    exact, estimated = (limit.limits_table(made(steps=n), E) for n in (0, 40))
    assert set(exact[limit.THEORY]) == {"35.0 (35.0 to 35.0)"}
    assert set(estimated[limit.THEORY]) == {"35.0 ± 5.0 (35.0 to 35.0)"}
    shown = limit.limits_table(made(steps=40, absolute=0.9), E)
    assert list(shown.columns) == ["measured, exists", "measured, finds"] and len(shown) == 4


def verdicts(**changes):
    return limit.verdicts(made(**changes), E).table.verdict.tolist()


def test_the_papers_picture_holds():
    # The sparsest matching level keeps a quarter: at once that is a ratio of 3/4 from level 0 and
    # 1/2 from level 1.
    assert verdicts() == ["holds"] * 10 + ["measured"] * 2


def test_verdicts_fail_as_they_should():
    assert verdicts(curvature=(("magnitude", 9.0), ("random", 1.0)))[0] == "fails"
    assert verdicts(passing=(("random", 0.5), ("magnitude", 0.4)))[1] == "fails"
    assert verdicts(predicted=0.9)[2:8] == ["fails"] * 6
    # a quarter is reached at once
    assert verdicts(passing=(("random", 0.2), ("magnitude", 0.8)))[8] == "fails"
    assert verdicts(predicted=0.9)[9] == "fails"


def test_a_way_without_curvature_counts_as_a_million_times_flatter():
    flat = limit.flatness(made(curvature=(("magnitude", -1.0), ("random", 9.0))))
    assert flat.flatter.to_numpy() == pytest.approx(np.log(1e6))
    assert (
        limit.flatness(made(curvature=(("magnitude", 1.0), ("random", -9.0)))).flatter.isna().all()
    )


def test_goals_are_what_leads_at_once_to_the_sparsest_level_that_matches():
    goals = limit.one_shot_goals(made(), E)
    assert list(zip(goals.seed, goals.level)) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert goals.goal.tolist() == [0.75, 0.5] * 3
    assert set(goals.above) == {0.5} and set(goals.predicted) == {0.35}
    # nothing matches but the dense network: nowhere to get to
    lost = made()
    lost["levels"].loc[lost["levels"].level > 0, "test_error"] = 0.2
    assert len(limit.one_shot_goals(lost, E)) == 0


def test_numbers_are_means_of_the_seeds_means():
    numbers = limit.numbers(made(), E)
    assert numbers["flatter_by"] == pytest.approx(9)
    assert numbers["exists_random"] == numbers["finds_random"] == pytest.approx(20)
    assert numbers["miss_theory_random"] == pytest.approx(0)
    assert numbers["miss_theory_magnitude"] == pytest.approx(5)
    assert np.isnan(limit.numbers(made(steps=40, absolute=0.9), E)["miss_theory_magnitude"])
    shown = limit.readings_table(made(), E)
    assert shown.loc[("random subspace", "clipped", "zero"), "magnitude"] == "5.0 [5.0, 5.0]"


def test_what_counts_the_gradient_is_the_theory_alone():
    e, tables, _ = unmask.published("miniature")
    predictions = tables["predictions"]
    quadratic = (predictions.criterion == limit.QUADRATIC) & predictions.gradient
    without = tables | {"predictions": predictions[~quadratic]}
    assert quadratic.any()
    for mask in limit.MASKS:
        name = f"miss_gradient_{mask}"
        assert limit.numbers(tables, e)[name] == limit.numbers(without, e)[name]
    figures = [limit.maximum_ratios(found, e) for found in (tables, without)]
    one, other = ([line.get_ydata() for line in f.axes[1].get_lines()] for f in figures)
    assert len(one) == len(other) and all(map(np.array_equal, one, other))
