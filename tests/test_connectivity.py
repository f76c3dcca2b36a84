"""Finding 1: tables against the networks they are about, verdicts from hand-made tables."""

from itertools import product

import pandas as pd
import pytest
from hand_made import E, controls, levels

import unmask
from unmask import pruning
from unmask.experiments import experiment
from unmask.findings import connectivity
from unmask.lab import Lab
from unmask.train import Start, train
from unmask.verdicts import barrier


def chains(bump, barrier, seeds=6):
    """`bump(rewind_step, level)`: how far the midpoint of a segment lies above the mean of its
    ends; `barrier(rewind_step, level, other)`: of a pair of levels."""
    table, segments, pairs = levels(seeds=seeds), [], []
    for (seed, step), chain in table.groupby(["seed", "rewind_step"]):
        errors = chain.set_index("level").test_error
        for level in range(3):
            first, last = errors[level], errors[level + 1]
            middle = (first + last) / 2 + bump(step, level)
            for t, error in ((0, first), (0.5, middle), (1, last)):
                for norms in ("interpolated", "re-estimated"):
                    at = seed, step, level, level + 1, norms, t
                    segments.append((*at, error, error / 2, 3 * error))
        for one in range(4):
            for other in range(one + 1, 4):
                pairs.append((seed, step, one, other, barrier(step, one, other)))
    keys = ["seed", "rewind_step", "level"]
    metrics = ["test_error", "train_error", "train_loss"]
    columns = [*keys, "next_level", "norms", "t", *metrics]
    return {
        "levels": table,
        "segments": pd.DataFrame(segments, columns=columns),
        "pairs": pd.DataFrame(pairs, columns=[*keys, "other", "barrier"]),
    }


def paper(seeds=6):
    return chains(
        lambda step, level: 0.6 if step == 0 or level == 2 else 0.0,
        lambda step, one, other: 0.6 if step == 0 or other == 3 else 0.0,
        seeds,
    )


def everywhere(height):
    return chains(lambda *_: height, lambda *_: height)


def probed(there=((0, True), (10, True)), found=((0, False), (10, True)), seeds=6):
    """Of levels 0 to 2: whether the projection is in the set, and whether retraining ends in it, by
    rewind step."""
    rows = []
    for seed, (step, inside), level in product(range(seeds), there, range(3)):
        ends = dict(found)[step]
        for weights, good in (("projection", inside), ("fine-tuned", False), ("retrained", ends)):
            error, barrier = (0.04, 0.0) if good else (0.5, 0.4)
            rows.append((seed, step, level, weights, error, 0.04, barrier))
    columns = ["seed", "rewind_step", "level", "weights", "test_error", "solution_error", "barrier"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(tables, others=None, subspaces=None):
    tables = tables | {"controls": controls() if others is None else others}
    tables["subspaces"] = probed() if subspaces is None else subspaces
    return connectivity.verdicts(tables, E).table.verdict.tolist()


# Two directions where training is stable, two claims where it is not, two measured, two masks, and
# four about what is there and what is found. From the first rewind step of these tables only the
# dense network matches, which is no level: that claim has no case.
HOLD = ["holds"] * 2 + ["undecided", "holds"] + ["measured"] * 2 + ["holds"] * 6


def test_the_papers_picture_holds_throughout():
    assert verdicts(paper()) == HOLD


def test_each_direction_fails_on_its_own():
    """Barriers everywhere leave no matching level connected; none anywhere leaves the others so."""
    assert verdicts(everywhere(0.6))[:4] == ["fails", "holds", "undecided", "holds"]
    # level 3 does not match, and half the difference of its ends is a barrier
    flat = everywhere(0.0)
    assert verdicts(flat)[:2] == ["holds", "holds"]
    last = (flat["segments"].rewind_step == 10) & (flat["segments"].level == 2)
    flat["segments"].loc[last, "test_error"] = 0.05
    assert verdicts(flat)[:2] == ["holds", "fails"]


def test_matching_levels_behind_barriers_are_the_claim_about_early_rewinding():
    early = chains(lambda step, level: 0.6 if step == 0 else 0.0, lambda *_: 0.0)
    early["levels"] = levels(early=(0.04, 0.045, 0.12, 0.2))
    assert verdicts(early)[2] == "holds"
    connected = chains(lambda *_: 0.0, lambda *_: 0.0)
    connected["levels"] = early["levels"]
    connected["segments"].test_error = 0.04
    assert verdicts(connected)[2] == "fails"


def test_controls_as_good_as_imp_fail_the_claims_that_they_are_not():
    assert verdicts(paper(), controls(0.045, 0.0))[6:8] == ["fails", "fails"]


def test_what_is_there_and_what_training_finds_are_judged_apart():
    nowhere = probed(there=((0, False), (10, False)), found=((0, True), (10, False)))
    # what training finds is there, too
    assert verdicts(paper(), subspaces=nowhere)[8:] == ["fails", "fails", "holds", "fails"]
    unused = probed(found=((0, False), (10, False)))
    assert verdicts(paper(), subspaces=unused)[8:] == ["holds", "fails", "holds", "holds"]


def test_the_first_level_that_is_lost_for_good_counts():
    """Of two chains: good at levels 1, 2 and 4, and nowhere."""
    pairs = pd.DataFrame({"seed": [0] * 5 + [1] * 5, "next_level": [1, 2, 3, 4, 5] * 2})
    good = pd.Series([True, True, False, True, False] + [False] * 5)
    assert connectivity.lost_from(pairs, good).to_dict() == {0: 5, 1: 1}


def test_lag_is_how_many_levels_later_the_connection_is_lost():
    lag = connectivity.verdicts(paper(), E).evidence[4]
    assert lag.unit == "levels" and lag.values.tolist() == [0] * 6 and lag.bounds == []
    kept = chains(lambda step, level: 0.6 if step == 0 else 0.0, lambda *_: 0.0)
    last = (kept["segments"].rewind_step == 10) & (kept["segments"].level == 2)
    kept["segments"].loc[last, "test_error"] = 0.1
    lag = connectivity.verdicts(kept, E).evidence[4]
    assert lag.values.tolist() == [1] * 6 and lag.bounds == list(range(6))  # the chain has ended


def test_networks_at_chance_are_no_case_and_a_group_of_their_own():
    dead = paper()
    dead["levels"] = levels(late=(0.04, 0.04, 0.045, 0.9))
    assert verdicts(dead)[1] == "undecided"
    assert connectivity.quadrants(dead, E).loc[10, "at chance"] == "50.0 (6)"


@pytest.mark.parametrize(
    "worse, barrier, inside",
    [
        (0.0, 0.0, True),
        (E.epsilon, 0.0, True),  # exactly epsilon worse counts as as good
        (E.epsilon + 1e-4, 0.0, False),
        (0.0, E.lmc_threshold - 1e-4, True),
        (0.0, E.lmc_threshold, False),  # exactly the threshold counts as a barrier
        (0.2, 0.5, False),
    ],
)
def test_a_network_is_in_the_set_if_it_is_as_good_and_behind_no_barrier(worse, barrier, inside):
    table = probed(seeds=1).assign(test_error=0.04 + worse, barrier=barrier)
    found = connectivity.in_set({"subspaces": table}, E)
    assert (found.inside == inside).all()


def test_quadrants_are_shares_of_the_pairs_of_each_rewind_step():
    shown = connectivity.quadrants(paper(), E)
    assert shown.loc[10, "matching, connected"] == "50.0 (6)"  # levels 2 and 3 are sparse enough
    assert shown.loc[10, "not matching, not connected"] == "50.0 (6)"
    assert shown.loc[0, "not matching, not connected"] == "100.0 (12)"
    assert set(shown.loc[0, shown.columns[:3]]) == {"0.0 (0)"}
    shares = shown.map(lambda cell: float(cell.split()[0]))
    assert (shares.sum(axis=1) == 100).all()


def test_barriers_of_train_error_and_loss_stand_beside_the_headline():
    judged = connectivity.successive(everywhere(0.6), E)
    assert judged.train_error_barrier.to_numpy() == pytest.approx(judged.barrier / 2)
    assert judged.train_loss_barrier.to_numpy() == pytest.approx(3 * judged.barrier)
    shown = connectivity.barriers_by_metric(judged)
    assert shown.loc[(0, "not matching"), "test error (points)"] == pytest.approx(60)


def test_the_first_cut_is_that_of_the_dense_network_from_the_first_step():
    found = connectivity.first_barriers(paper(), E)
    assert list(found.index) == list(range(6)) and set(found) == {"interpolated", "re-estimated"}
    assert found.to_numpy() == pytest.approx(0.6)
    later = chains(lambda step, level: 0.6 if step or level else 0.0, lambda *_: 0.0)
    # half of what the two ends differ by
    assert connectivity.first_barriers(later, E).to_numpy() == pytest.approx((0.10 - 0.04) / 2)


def test_the_chart_shows_the_numbers_of_the_tables():
    tables = paper()
    chart = connectivity.explorer(tables, E)
    rows = pd.DataFrame(chart[connectivity.VEGA_LITE]["data"]["values"])
    keys = ["seed", "rewind_step", "level"]
    shown = rows.explode(["t", "error"]).set_index([*keys, "t"]).error.astype(float)
    known = tables["segments"].query("norms == 'interpolated'").set_index([*keys, "t"])
    assert (shown - 100 * known.test_error).abs().max() < 0.01 and len(shown) == len(known)
    far = rows.explode(["other", "far"]).set_index([*keys, "other"]).far.astype(float)
    known = tables["pairs"].set_index([*keys, "other"]).barrier
    assert (far - 100 * known).abs().max() <= 0.05 + 1e-9 and len(far) == len(known)
    judged = connectivity.successive(tables, E).set_index(keys)
    for row in rows.set_index(keys).itertuples():
        pair = judged.loc[row.Index]
        assert f"barrier {100 * pair.barrier:.1f} points" in row.words[1]
        assert row.words[1].endswith(", connected;") == pair.connected
        assert row.words[2].endswith("is matching.") == pair.matching
    # the same bytes again, and the picture begins as the chart does
    assert chart == connectivity.explorer(tables, E)
    first = rows[(rows.seed == 0) & (rows.rewind_step == 0) & (rows.level == 1)].words.item()
    assert all(line in chart["image/svg+xml"] for line in first)


# What is measured


def test_subspaces_are_measured_against_the_solution(smoke_store):
    lab = Lab(experiment("smoke"), smoke_store)
    found = unmask.table("subspaces", lab.experiment, lab.store, 1)
    rows = found[(found.seed == 1) & (found.rewind_step == 5) & (found.level == 2)]
    solution, after = lab.level(1, 5, 2), lab.level(1, 5, 3)
    projection = pruning.apply(after.mask, solution.state)
    rows = rows.set_index("weights")
    for weights, state in (("projection", projection), ("retrained", after.state)):
        path = lab.path(solution.state, state)
        assert rows.test_error[weights] == path.test_error.iloc[-1]
        assert rows.barrier[weights] == barrier(path)
    assert set(rows.solution_error) == {lab.evaluate(solution.state).error}
    # trained within the mask, at the last learning rate
    start = Start(projection, after.mask, (1, "order", 3, "fine-tuned"))
    e = lab.experiment
    tuned = train(e, lab.data.train, [start], 5, lr=e.lr * e.lr_decay**2)[0].states[e.steps]
    assert rows.test_error["fine-tuned"] == lab.evaluate(tuned).error
    assert all((tuned[name][~kept] == 0).all() for name, kept in after.mask.items())
