"""Finding 1: verdicts, counts and exceptions from hand-made tables."""

import pandas as pd
import pytest
from hand_made import E, controls, levels

from unmask.findings import connectivity


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


def verdicts(tables, others=None):
    tables = tables | {"controls": controls() if others is None else others}
    return connectivity.verdicts(tables, E).table.verdict.tolist()


def test_the_papers_picture_holds_throughout():
    assert verdicts(paper()) == ["holds"] * 8


def test_barriers_everywhere_fail_what_they_should():
    made = verdicts(everywhere(0.6))
    assert made[:2] == ["fails", "fails"] and made[2] == "not decidable"  # nothing is connected
    assert made[3] == "holds" and made[4] == "fails"


def test_no_barrier_anywhere_fails_what_it_should():
    assert verdicts(everywhere(0.0))[:5] == ["fails", "holds", "fails", "fails", "holds"]


def test_controls_as_good_as_imp_fail_the_claims_that_they_are_not():
    assert verdicts(paper(), controls(0.045, 0.0))[5:] == ["holds", "fails", "fails"]


def test_few_cases_are_not_decidable():
    tables = paper(seeds=1) | {"controls": controls(seeds=1)}
    last = connectivity.verdicts(tables, E).table.iloc[-1]
    assert last.verdict == "not decidable" and last.cases == 1


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
def test_a_network_is_in_the_lcs_set_if_it_is_as_good_and_behind_no_barrier(worse, barrier, inside):
    previous = 0.03  # not the dense network's: in the set is what compares with the level before
    others = controls(previous + worse, barrier, seeds=2).assign(previous_error=previous)
    found = connectivity.in_lcs_set({"levels": levels(seeds=2), "controls": others}, E)
    assert len(found) == 10  # of both seeds, IMP and its four controls
    assert (found[found.kind != "imp"].in_lcs_set == inside).all()
    assert not found[found.kind == "imp"].in_lcs_set.any()  # 0.015 worse than the level before


def test_only_sparse_levels_at_which_imp_matches_are_asked_for_the_lcs_set():
    tables, made = {"levels": levels(seeds=2)}, controls(seeds=2)
    for column, value in (("density", 0.4), ("test_error", 0.2)):
        found = connectivity.in_lcs_set(tables | {"controls": made.assign(**{column: value})}, E)
        assert len(found) == 0
    lost = made.assign(test_error=made.test_error.where(made.seed == 0, 0.2))
    assert set(connectivity.in_lcs_set(tables | {"controls": lost}, E).seed) == {0}


def test_contingency_and_exceptions_count_and_name():
    judged = connectivity.successive(chains(lambda *_: 0.0, lambda *_: 0.0, seeds=2), E)
    counts = connectivity.contingency(judged)
    assert counts.loc[("all", "matching"), "connected"] == 4
    assert counts.loc[("all", "not matching")].sum() == 8
    assert counts.loc[10].to_numpy().sum() == counts.loc[0].to_numpy().sum() == 6
    odd = connectivity.exceptions(judged)
    assert set(odd.which) == {"connected, not matching"}
    assert len(odd) == (judged.connected & ~judged.matching).sum()
    # rewound to 0, level 0 to 1: half the difference of the ends is a barrier of 3 points even on
    # a straight line
    assert not judged.set_index(["seed", "rewind_step", "level"]).connected[0, 0, 0]


def test_barriers_of_train_error_and_loss_stand_beside_the_headline():
    judged = connectivity.successive(everywhere(0.6), E)
    assert judged.train_error_barrier.to_numpy() == pytest.approx(judged.barrier / 2)
    assert judged.train_loss_barrier.to_numpy() == pytest.approx(3 * judged.barrier)
    shown = connectivity.barriers_by_metric(judged)
    assert shown.loc[(0, "not matching"), "test error (points)"] == pytest.approx(60)
