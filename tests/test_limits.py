"""The pruning limit: orders and masks that agree, stored curvature, and closed forms of the measured maximum."""

import numpy as np
import pandas as pd
import pytest
import torch

from unmask import claims, curvature, limits, measure, networks, pruning
from unmask.chains import Runs
from unmask.experiments import experiment
from unmask.limits import Solution, removal_order, stored_curvature, without
from unmask.train import Start, evaluate, train


@pytest.fixture(scope="module")
def runs(smoke_store):
    return Runs(experiment("smoke"), smoke_store)


def table(runs, name):
    return measure.table(name, runs.experiment, runs.store, 1)


@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_the_magnitude_order_gives_the_masks_that_pruning_gives(runs, ratio):
    solution = Solution(runs, 0, 2)
    keep = len(solution.weights) - round(ratio * len(solution.weights))
    expected = pruning.prune_magnitude(solution.state, solution.mask, keep)
    assert all(torch.equal(kept, expected[name]) for name, kept in solution.pruned("magnitude", ratio).items())


def test_random_orders_repeat_differ_by_draw_and_nest(runs):
    solution = Solution(runs, 0, 2)
    assert np.array_equal(solution.order("random"), solution.order("random"))
    assert not np.array_equal(solution.order("random"), solution.order("random", draw=1))
    some, more = (solution.pruned("random", ratio) for ratio in (0.2, 0.8))
    assert all((more[name] <= some[name]).all() and (some[name] <= solution.mask[name]).all() for name in some)
    assert pruning.survivors(more) == 1201 - round(0.8 * 1201)


def test_without_counts_survivors_as_curvature_does():
    mask = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False, True])}
    order = removal_order("magnitude", np.array([3.0, -1.0, 2.0, 0.5]))
    assert order.tolist() == [3, 1, 2, 0]
    left = without(mask, order, 2)
    assert left["a"].tolist() == [[True, False], [False, True]] and left["b"].tolist() == [False, False]
    assert curvature.surviving(left, mask).tolist() == [True, False, True, False]
    assert pruning.survivors(mask) == 4  # its argument is left alone


def test_stored_curvature_is_that_of_the_solution(runs):
    """Its trace is that of the Hessian at the solution, estimated afresh."""
    found, solution = stored_curvature(runs, 1, 2), Solution(runs, 1, 2)
    assert set(found) == {"0.values", "0.weights", "random", "magnitude"}  # estimates: of seed 0 only
    total = curvature.Spectrum(found["0.values"].numpy(), found["0.weights"].numpy()).estimate(lambda v: v)[0]
    probes = curvature.trace(solution.operator, 16, torch.Generator().manual_seed(0))
    assert total == pytest.approx(probes[0], abs=5 * probes[1])
    assert {"10.values", "20.values", "0.values"} <= set(stored_curvature(runs, 0, 2))


def test_the_exact_quadratic_s_rises_are_stored_for_the_orders_that_are_measured(runs):
    found, solution = stored_curvature(runs, 1, 2), Solution(runs, 1, 2)
    for kind in limits.MASKS:
        rises = found[kind].numpy()
        assert rises.shape == (1202,) and rises[0] == 0 and (np.diff(rises) >= 0).all()
    # all removed: half of w' H w, whatever the order
    assert found["random"][-1] == pytest.approx(float(found["magnitude"][-1]), rel=1e-6)
    assert solution.weights.shape == (1201,)


def test_the_dense_hessian_is_computed_exactly_for_seed_zero_only(runs, monkeypatch):
    monkeypatch.setattr(curvature, "exact_hessian", lambda *_: pytest.fail("computed"))
    found = stored_curvature(runs, 1, 0)
    assert set(found) == {"10.values", "10.weights"} and found["10.weights"].sum(1).numpy() == pytest.approx(1876)


def test_what_is_computed_of_the_first_seed_alone_goes_by_another_name_for_another_first_seed(runs):
    other = Runs(runs.experiment.but(first_seed=1, seeds=1), runs.store)
    assert limits._curvature_name(runs, 1, 2) != limits._curvature_name(other, 1, 2)


def test_spectra_are_ranked_and_estimates_agree_at_the_top(runs):
    spectra = table(runs, "spectra")
    for _, rows in spectra.groupby(["seed", "level", "steps"]):
        assert rows["rank"].is_monotonic_increasing and rows.eigenvalue.is_monotonic_decreasing
        assert rows["rank"].iloc[[0, -1]].tolist() == [1, 1201]
    found = stored_curvature(runs, 0, 2)["0.values"].numpy()[0]
    exact = spectra[(spectra.seed == 0) & (spectra.steps == 0)]
    assert exact.eigenvalue.tolist() == [np.sort(found)[::-1][rank - 1] for rank in exact["rank"]]
    largest = table(runs, "curvatures").query("seed == 0").set_index("steps").largest
    assert largest[20] == pytest.approx(largest[0], rel=1e-3)


def test_predictions_rise_with_the_loss_height(runs):
    predictions = table(runs, "predictions")
    for _, rows in predictions.groupby(["seed", "level", "criterion", "mask", "steps"]):
        assert rows.sort_values("height").ratio.is_monotonic_increasing and rows.ratio.between(0, 1).all()
    assert predictions[predictions.steps > 0].error.notna().all()


def test_displacements_start_at_the_solution_and_end_at_the_projection(runs):
    displacements, solution = table(runs, "displacements"), Solution(runs, 1, 2)
    rows = displacements[(displacements.seed == 1) & (displacements["mask"] == "magnitude")].set_index("t")
    projection = pruning.apply(solution.pruned("magnitude", 0.2), solution.state)
    for t, state in ((0.0, solution.state), (1.0, projection)):
        assert rows.loss[t] == solution.loss(state)
    gone = round(0.2 * 1201)
    assert rows.distance[0.0] == pytest.approx(np.sqrt((np.sort(np.abs(solution.weights))[:gone] ** 2).sum()), rel=1e-6)
    random = displacements[(displacements.seed == 1) & (displacements["mask"] == "random")].distance
    assert random.min() > rows.distance[0.0]  # the smallest weights are the shortest way


def test_each_level_s_spectrum_is_drawn():
    from unmask import figures

    spectra = pd.DataFrame([{"seed": 0, "level": level, "steps": 0, "rank": rank, "eigenvalue": 1 / rank / (level + 1)}
                            for level in range(6) for rank in (1, 2, 4)])
    figure = figures.hessian_spectra(spectra)
    assert len(figure.axes[0].lines) == 6


def test_prunings_say_what_retraining_and_evaluation_say(runs):
    e, solution = runs.experiment, Solution(runs, 0, 2)
    rows = table(runs, "prunings").query("seed == 0 and mask == 'random' and ratio == 0.8").set_index("weights")
    mask = solution.pruned("random", 0.8)
    start = Start(runs.rewind_point(0, 5), mask, (0, "order", 2, "pruned"))
    trained = train(e, runs.data.train, [start], 5)[0][e.steps]
    for weights, state in (("retrained", trained), ("projection", pruning.apply(mask, solution.state))):
        networks.load_state(runs.network, state)
        assert rows.test_error[weights] == evaluate(runs.network, runs.data.test).error


# --- verdicts from hand-made tables

E = experiment("miniature", prune_ratios=(0.2, 0.4, 0.5, 0.6, 0.8), epsilon=0.01, lmc_threshold=0.02, limit_tolerance=0.1)


def made(passing={"random": 0.2, "magnitude": 0.4}, predicted=0.35, curvature=(1.0, 9.0), levels=2):
    chain = pd.DataFrame([{"seed": seed, "rewind_step": 250, "level": level, "density": 0.5 ** level,
                           "test_error": 0.04 if level < 3 else 0.2} for seed in range(3) for level in range(4)])
    cases = [(seed, level) for seed in range(3) for level in range(levels)]
    prunings = pd.DataFrame([
        {"seed": seed, "level": level, "mask": mask, "ratio": ratio, "weights": weights,
         "test_error": 0.045 if ratio <= most else 0.06, "barrier": 0.0} for seed, level in cases
        for mask, most in passing.items() for ratio in E.prune_ratios for weights in ("projection", "retrained")])
    predictions = pd.DataFrame([
        {"seed": seed, "level": level, "criterion": criterion, "mask": mask, "steps": steps, "height": height,
         "ratio": predicted if steps == 0 else 0.99, "error": np.nan} for seed, level in cases for mask in passing
        for height in limits.HEIGHTS for criterion, steps in (("random subspace", 0), ("random subspace", 10),
                                                              ("exact quadratic", 0))])
    displacements = pd.DataFrame([
        {"seed": seed, "level": level, "mask": mask, "draw": 0, "distance": 1.0, "curvature": value, "t": t, "loss": 0.0}
        for seed, level in cases for mask, value in zip(("magnitude", "random"), curvature) for t in (0.0, 1.0)])
    return chain, predictions, displacements, prunings


def test_the_measured_maximum_is_the_largest_ratio_that_matches_and_is_connected():
    chain, *_, prunings = made()
    found = claims.measured_limits(chain, prunings, E).set_index(["seed", "level", "mask", "weights"])
    assert tuple(found.loc[(0, 0, "random", "retrained")]) == (0.2, 0.4)
    assert tuple(found.loc[(0, 0, "magnitude", "retrained")]) == (0.4, 0.5)
    prunings.loc[(prunings["mask"] == "magnitude") & (prunings.ratio == 0.4), "barrier"] = 0.02  # no longer connected
    found = claims.measured_limits(chain, prunings, E).set_index(["seed", "level", "mask", "weights"])
    assert found.ratio[0, 0, "magnitude", "projection"] == 0.2
    none = claims.measured_limits(chain, prunings.assign(test_error=0.5), E)
    assert set(none.ratio) == {0.0} and set(none.above) == {0.2}
    every = claims.measured_limits(chain, prunings.assign(test_error=0.0, barrier=0.0), E)
    assert set(every.ratio) == {0.8} and set(every.above) == {1.0}


@pytest.mark.parametrize("predicted, miss", [(0.3, 0), (0.2, 0), (0.4, 0), (0.1, 0.1), (0.55, 0.15)])
def test_a_prediction_misses_by_its_distance_to_where_the_maximum_must_lie(predicted, miss):
    chain, predictions, _, prunings = made(predicted=predicted)
    table = claims.predicted_and_measured(chain, predictions, prunings, E)
    assert table[table["mask"] == "random"].miss.to_numpy() == pytest.approx(miss)


def test_exact_spectra_come_before_estimates_and_more_steps_before_fewer():
    _, predictions, _, _ = made()
    assert set(claims.best_predictions(predictions).ratio) == {0.35}
    estimated = predictions[predictions.steps > 0]
    more = pd.concat([estimated, estimated.assign(steps=20, ratio=0.5)])
    assert set(claims.best_predictions(more).ratio) == {0.5}


def verdicts(**changes):
    chain, predictions, displacements, prunings = made(**changes)
    return claims.pruning_limit(chain, predictions, displacements, prunings, E).table.verdict.tolist()


def test_the_papers_picture_holds():
    # the sparsest matching level keeps a quarter: at once that is a ratio of 3/4 from level 0 and 1/2 from level 1
    assert verdicts() == ["holds"] * 7


def test_verdicts_fail_as_they_should():
    assert verdicts(predicted=0.9)[0] == "fails" and verdicts(predicted=0.9)[4] == "fails"
    assert verdicts(passing={"random": 0.4, "magnitude": 0.4})[1] == "fails"
    assert verdicts(curvature=(9.0, 1.0))[2] == "fails"
    assert verdicts(passing={"random": 0.2, "magnitude": 0.8})[3] == "fails"  # a quarter is reached at once


def test_levels_already_as_sparse_as_the_sparsest_matching_one_are_not_asked():
    cases = claims.pruning_limit(*made(levels=3), E).table.cases
    assert cases[0] == 9 and cases[3] == 6


def test_goals_between_what_passes_and_what_does_not_decide_nothing():
    """From level 1 the goal is 1/2: at most 0.4 passes, 0.6 does not, and nobody tried what lies between."""
    coarse = E.but(prune_ratios=(0.2, 0.4, 0.6, 0.8))
    chain, predictions, displacements, prunings = made()
    prunings = prunings[prunings.ratio != 0.5]
    assert claims.pruning_limit(chain, predictions, displacements, prunings, coarse).table.cases[3] == 3


def test_means_are_over_the_networks_of_which_all_is_known():
    chain, predictions, displacements, prunings = made()
    only = predictions[(predictions.criterion != "exact quadratic") | (predictions.level == 1)]
    only = only.assign(ratio=only.ratio.where(only.level == 1, 0.9))
    numbers = claims.limits_in_numbers(chain, only, displacements, prunings, E)
    assert numbers["compared"] == 3 and numbers["random_random"] == numbers["exact_random"] == pytest.approx(35)


def test_goals_beyond_the_sweep_are_not_asked():
    short = E.but(prune_ratios=(0.2, 0.4, 0.5, 0.6))  # level 0 would need 3/4
    chain, predictions, displacements, prunings = made()
    prunings = prunings[prunings.ratio < 0.8]
    assert claims.pruning_limit(chain, predictions, displacements, prunings, short).table.cases[3] == 3
