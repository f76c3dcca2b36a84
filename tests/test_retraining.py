"""Finding 4: shares and lengths counted by hand, tables that agree with the stored trainings, and
verdicts from hand-made tables."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import DENSITY, SEEDS, E, levels

import unmask
from unmask import chains, networks, pruning
from unmask.chains import RETRAININGS
from unmask.experiments import experiment
from unmask.findings import retraining
from unmask.lab import Lab
from unmask.store import TENSORS, Store
from unmask.train import Start, evaluate, learning_rate, train

# Two layers of a toy network and a bias that must not count: magnitudes 1 to 6.
STATE = {
    "a": torch.tensor([[1.0, -2.0], [3.0, -4.0]]),
    "b": torch.tensor([5.0, -6.0]),
    "bias": torch.tensor([0.5]),
}
ALL = {name: torch.ones_like(STATE[name], dtype=torch.bool) for name in ("a", "b")}


@pytest.fixture
def lab(smoke_store):
    return Lab(experiment("smoke"), smoke_store)


def table(lab, name):
    return unmask.table(name, lab.experiment, lab.store, 1)


def test_shares_below_the_threshold_counted_by_hand():
    kept = pruning.prune_magnitude(STATE, ALL, 4)
    limit = pruning.threshold(STATE, kept)
    assert limit == 3.0
    assert pruning.share_below(STATE, ALL, limit) == 2 / 6
    assert pruning.share_below(STATE, kept, limit) == 0.0  # the threshold itself is kept
    # 3 and 4 fall below, 5 and 6 do not
    shrunk = {name: tensor / 1.5 for name, tensor in STATE.items()}
    assert pruning.share_below(shrunk, kept, limit) == 2 / 4


def test_projection_length_is_the_norm_of_the_removed_weights():
    wider, sparser = (pruning.prune_magnitude(STATE, ALL, keep) for keep in (5, 3))
    assert retraining.removed_length(STATE, ALL, wider) == 1.0
    length = retraining.removed_length(STATE, wider, sparser)
    assert length == pytest.approx((2**2 + 3**2) ** 0.5)
    before, after = pruning.apply(ALL, STATE), pruning.apply(sparser, STATE)
    distance = sum(float(((before[name] - after[name]) ** 2).sum()) for name in STATE) ** 0.5
    assert retraining.removed_length(STATE, ALL, sparser) == pytest.approx(distance)


def test_pruning_empties_the_gap_exactly_and_nothing_else_does(lab):
    gaps = table(lab, "gaps")
    below = gaps.set_index(["seed", "rewind_step", "level", "stage"]).below
    assert (gaps[gaps.stage == "pruned"].below == 0).all()
    assert below[0, 5, 1, "solution"] == (1876 - 1501) / 1876
    solution, ticket = lab.level(0, 5, 1), lab.level(0, 5, 2)
    kept = np.abs(pruning.surviving(solution.state, ticket.mask))
    small = np.abs(pruning.surviving(ticket.state, ticket.mask)) < kept.min()
    assert below[0, 5, 2, "retrained"] == small.sum() / 1201


def test_histograms_count_every_survivor_once(lab):
    counts, keys = table(lab, "magnitudes"), ["seed", "stage"]
    assert set(counts.stage) == set(retraining.STAGES) and set(counts.level) == {2}
    totals = counts.groupby(keys)["count"].sum()
    assert (totals[:, "solution"] == 1501).all()
    for stage in ("pruned", "rewound", "retrained"):
        assert (totals[:, stage] == 1201).all()
    gap = counts[counts.high <= 1]
    assert (gap[gap.stage == "pruned"]["count"] == 0).all()
    shares = gap.groupby(keys)["count"].sum() / totals
    gaps = table(lab, "gaps")
    for row in gaps[(gaps.rewind_step == 5) & (gaps.level == 2)].itertuples():
        assert shares[row.seed, row.stage] == row.below


def test_refill_ends_where_the_stored_training_ended(lab):
    e, course, gaps = lab.experiment, table(lab, "refill"), table(lab, "gaps")
    methods = table(lab, "retraining_methods").set_index(["seed", "kind"]).below
    gaps = gaps[(gaps.rewind_step == 5) & (gaps.level == 2)].set_index(["seed", "stage"]).below
    assert set(course.level) == {2}
    courses = course.set_index(["seed", "kind", "step"]).below.sort_index()
    for seed in range(e.seeds):
        for kind in chains.CHAINS:
            below = courses[seed, kind]
            assert below[e.steps] == methods[seed, kind] and (below[5] == 0) == (kind != "imp")
        below = courses[seed, "imp"]
        assert below.index[0] == 5 and below.index[-1] == e.steps
        assert below.index.is_monotonic_increasing
        assert below[5] == gaps[seed, "rewound"] and below[e.steps] == gaps[seed, "retrained"]
    assert course.share.min() == 0 and course.share.max() == 1


def test_a_course_is_stored_with_the_network_whoever_trains_beside_it(lab, tmp_path):
    table(lab, "refill")  # trained side by side
    store = Store(tmp_path)
    shutil.copytree(lab.store.root, store.root, dirs_exist_ok=True)
    alone, places = Lab(lab.experiment, store), []
    for kind in chains.CHAINS:
        place = chains.place(lab.experiment, kind, 1, 5, 2)
        (store.root / f"{alone.name(place)}{TENSORS}.json").unlink()
        places.append(place)
    courses = [ticket.course for ticket in lab.tickets(places)]
    assert all(course and set(course) == set(courses[0]) for course in courses)
    assert [alone.tickets([place])[0].course for place in places] == courses  # trained again
    assert [ticket.course for ticket in Lab(lab.experiment, store).tickets(places)] == courses
    assert lab.level(1, 5, 0).course == {}  # no cut, nothing to fill


def test_next_cuts_are_projections_of_the_networks_they_name(lab):
    cuts = table(lab, "next_cuts").set_index(["seed", "level", "cut"])
    solution, dense, following = (lab.level(1, 5, level) for level in (2, 0, 3))
    at_once = pruning.prune_magnitude(dense.state, dense.mask, lab.survivors(3))
    cases = ("retrained", solution.state, following.mask), ("one-shot", dense.state, at_once)
    for cut, state, mask in cases:
        networks.load_state(lab.network, pruning.apply(mask, state))
        assert cuts.test_error[1, 3, cut] == evaluate(lab.network, lab.data.test).error
    gone = {name: kept & ~following.mask[name] for name, kept in solution.mask.items()}
    removed = np.linalg.norm(pruning.surviving(solution.state, gone))
    assert cuts.length[1, 3, "retrained"] == pytest.approx(removed)
    # Without retraining the cuts are one: that of level 2 from level 0 is continued and one-shot at
    # once.
    assert cuts.length[0, 2, "continued"] == cuts.length[0, 2, "one-shot"]
    assert (0, 1, "continued") not in cuts.index


@pytest.mark.parametrize("kind", RETRAININGS)
def test_methods_go_on_from_the_pruned_weights(lab, kind):
    e = lab.experiment
    before, after = (lab.ticket(kind, 0, 5, level) for level in (1, 2))
    mask = pruning.prune_magnitude(before.state, before.mask, lab.survivors(2))
    assert all(torch.equal(mask[name], after.mask[name]) for name in mask)
    lr = learning_rate(e, e.steps - 1) if kind == "fine-tuned" else None
    start = Start(before.state, mask, (0, "order", 2))
    again = train(e, lab.data.train, [start], 5, lr=lr)[0].states[e.steps]
    assert all(torch.equal(again[name], after.state[name]) for name in again)


def test_methods_share_the_dense_run_and_the_first_mask(lab):
    dense, first = ([lab.ticket(kind, 0, 5, at) for kind in chains.CHAINS] for at in (0, 1))
    for name in lab.dense_mask:
        assert all(torch.equal(ticket.state[name], dense[0].state[name]) for ticket in dense)
        assert all(torch.equal(ticket.mask[name], first[0].mask[name]) for ticket in first)
    assert len({float(ticket.state["stem.weight"].norm()) for ticket in first}) == 3


def test_a_constant_learning_rate_is_the_schedules_where_that_is_constant(lab):
    e = lab.experiment
    start = Start(lab.rewind_point(0, 5), lab.dense_mask, (0, "order", 0))
    until = int(e.milestones[0] * e.steps)
    scheduled, constant, smaller = (
        train(e, lab.data.train, [start], 5, [until], lr=lr)[0].states[until]
        for lr in (None, e.lr, e.lr / 2)
    )
    assert all(torch.equal(scheduled[name], constant[name]) for name in scheduled)
    assert not torch.equal(scheduled["stem.weight"], smaller["stem.weight"])


def test_the_methods_table_says_of_imp_what_the_other_tables_say(lab):
    methods, controls = table(lab, "retraining_methods"), table(lab, "controls")
    imp = methods[methods.kind == "imp"].set_index("seed")
    control = controls[(controls.kind == "imp") & (controls.level == 2)].set_index("seed")
    cuts = table(lab, "next_cuts").set_index(["seed", "level", "cut"])
    gaps = table(lab, "gaps").set_index(["seed", "rewind_step", "level", "stage"])
    for seed in range(2):
        assert imp.barrier[seed] == control.barrier[seed]
        assert imp.test_error[seed] == control.test_error[seed]
        assert imp.cut_error[seed] == cuts.test_error[seed, 2, "retrained"]
        assert imp.below[seed] == gaps.below[seed, 5, 2, "retrained"]
    assert np.isfinite(methods.select_dtypes("number")).all(axis=None)


@pytest.mark.parametrize(
    "course, share",
    [
        ((0.0, 0.1, 0.2, 0.3), 1.0),  # until the very end
        ((0.2, 0.2, 0.2, 0.2), 0.0),  # from the start
        ((0.0, 0.295, 0.305, 0.3), 0.25),  # within a point, from either side
        ((0.3, 0.3, 0.1, 0.3), 1.0),  # what is left again does not count
        ((0.0, 0.32, 0.3, 0.3), 0.5),  # from above
    ],
)
def test_a_course_has_settled_where_it_stays_within_a_point_of_its_end(course, share):
    assert retraining.settled_from(pd.Series(course, index=[0.0, 0.25, 0.5, 1.0])) == share


# Verdicts from hand-made tables


def made(retrained=0.15, continued=(2.0, 0.3), fine_tuned=(0.2, 0.01), lr_rewound=(0.045, 0.12)):
    """As in the paper. `retrained`: share below the threshold; `continued`: length and error of
    that cut; `fine_tuned`, `lr_rewound`: error and share below."""
    stages = {"solution": 0.2, "pruned": 0.0, "rewound": 0.3, "retrained": retrained}
    cuts = {"retrained": (1.0, 0.1), "continued": continued, "one-shot": (3.0, 0.6)}
    kinds = {"imp": (0.045, 0.15), "lr-rewound": lr_rewound, "fine-tuned": fine_tuned}
    gaps = [
        (seed, level, DENSITY[level], step, *stage)
        for seed in range(SEEDS)
        for step in E.rewind_steps
        for level in (1, 2, 3)
        for stage in stages.items()
    ]
    next_cuts = [
        (seed, level, DENSITY[level], cut, *found)
        for seed in range(SEEDS)
        for level in (1, 2, 3)
        for cut, found in cuts.items()
        if level > 1 or cut != "continued"
    ]
    methods = [
        (seed, level, DENSITY[level], kind, *found, 0.0)
        for seed in range(SEEDS)
        for level in (1, 2)
        for kind, found in kinds.items()
    ]
    columns = {
        "gaps": (gaps, ["rewind_step", "stage", "below"]),
        "next_cuts": (next_cuts, ["cut", "length", "test_error"]),
        "retraining_methods": (methods, ["kind", "test_error", "below", "barrier"]),
    }
    keys = ["seed", "level", "density"]
    tables = {
        name: pd.DataFrame(rows, columns=keys + more) for name, (rows, more) in columns.items()
    }
    return tables | {"levels": levels()}


def verdicts(**changes):
    return retraining.verdicts(made(**changes), E).table.verdict.tolist()


def test_a_single_level_has_no_cut_without_retraining_to_compare_with():
    tables = made()
    cuts = tables["next_cuts"]
    assert len(retraining.cuts_compared(tables)) == 12
    assert len(retraining.cuts_compared({"next_cuts": cuts[cuts.cut != "continued"]})) == 0


CLAIMS = ["lr-rewinding fills", "filled again", "retraining makes", "shorter", "hurts less"]
CLAIMS += ["lr-rewinding as good", "fine-tuning worse"]


def test_claims_hold_but_for_retraining_that_empties_what_rewinding_has_filled():
    assert dict(zip(CLAIMS, verdicts())) == dict.fromkeys(CLAIMS, "holds") | {
        "retraining makes": "fails"
    }


def test_each_claim_on_retraining_can_turn():
    assert verdicts(retrained=0.09)[1] == "fails"
    assert verdicts(retrained=0.31)[2] == "holds"
    assert verdicts(continued=(0.9, 0.09))[3:5] == ["fails", "fails"]
    assert verdicts(fine_tuned=(0.045, 0.15))[6] == "fails"
    assert verdicts(lr_rewound=(0.2, 0.05))[0] == "fails"
    assert verdicts(lr_rewound=(0.2, 0.05))[5] == "fails"


def test_methods_are_judged_where_weight_rewinding_matches_and_is_sparse():
    tables = made()
    worse = retraining.verdicts(tables, E).evidence[-1]
    # level 2 only, for level 1 keeps more than the ticket density: 15.5 points less epsilon
    assert worse.values.tolist() == pytest.approx([14.5] * SEEDS)
    tables["retraining_methods"].test_error = 0.8
    judged = retraining.verdicts(tables, E).table.verdict.tolist()
    assert judged[-2:] == ["undecided", "undecided"]


def test_a_gap_is_as_full_as_the_share_that_was_there_before():
    found = retraining.refilled(pd.Series([0.0, 0.1, 0.2]), E)
    assert found.tolist() == [0, 0.5, 1]
