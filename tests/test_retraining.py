"""What retraining does: shares and lengths counted by hand, and tables that agree with the stored trainings."""

import shutil

import numpy as np
import pytest
import torch

from unmask import chains, measure, networks, pruning, retraining
from unmask.chains import RETRAININGS, Place, Runs
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.store import TENSORS, Store
from unmask.train import Start, evaluate, learning_rate, train

# Two layers of a toy network and a bias that must not count: magnitudes 1 to 6.
STATE = {"a": torch.tensor([[1.0, -2.0], [3.0, -4.0]]), "b": torch.tensor([5.0, -6.0]), "bias": torch.tensor([0.5])}
ALL = {"a": torch.ones(2, 2, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}


@pytest.fixture
def runs(smoke_store):
    return Runs(experiment("smoke"), smoke_store)


def table(runs, name):
    return measure.table(name, runs.experiment, runs.store, 1)


def test_shares_below_the_threshold_counted_by_hand():
    kept = pruning.prune_magnitude(STATE, ALL, 4)
    limit = pruning.threshold(STATE, kept)
    assert limit == 3.0
    assert pruning.share_below(STATE, ALL, limit) == 2 / 6
    assert pruning.share_below(STATE, kept, limit) == 0.0  # the gap is empty: the threshold itself is kept
    shrunk = {name: tensor / 1.5 for name, tensor in STATE.items()}  # 3 and 4 fall below, 5 and 6 do not
    assert pruning.share_below(shrunk, kept, limit) == 2 / 4


def test_projection_length_is_the_norm_of_the_removed_weights():
    wider, sparser = pruning.prune_magnitude(STATE, ALL, 5), pruning.prune_magnitude(STATE, ALL, 3)
    assert retraining.removed_length(STATE, ALL, wider) == 1.0
    assert retraining.removed_length(STATE, wider, sparser) == pytest.approx((2**2 + 3**2) ** 0.5)
    before, after = pruning.apply(ALL, STATE), pruning.apply(sparser, STATE)
    distance = sum(float(((before[name] - after[name]) ** 2).sum()) for name in STATE) ** 0.5
    assert retraining.removed_length(STATE, ALL, sparser) == pytest.approx(distance)


def test_pruning_empties_the_gap_exactly_and_nothing_else_does(runs):
    gaps = table(runs, "gaps")
    below = gaps.set_index(["seed", "rewind_step", "level", "stage"]).below
    assert (gaps[gaps.stage == "pruned"].below == 0).all()
    assert below[0, 5, 1, "solution"] == (1876 - 1501) / 1876
    solution, ticket = runs.level(0, 5, 1), runs.level(0, 5, 2)
    weights = {name: solution.state[name][kept].abs() for name, kept in ticket.mask.items()}
    limit = min(part.min() for part in weights.values() if len(part))
    small = sum(int((ticket.state[name][kept].abs() < limit).sum()) for name, kept in ticket.mask.items())
    assert below[0, 5, 2, "retrained"] == small / 1201


def test_histograms_count_every_survivor_once(runs):
    counts = table(runs, "magnitudes")
    assert set(counts.stage) == set(retraining.STAGES) and set(counts.level) == {2}
    totals = counts.groupby(["seed", "stage"])["count"].sum().unstack()
    assert (totals.solution == 1501).all() and (totals[["pruned", "rewound", "retrained"]] == 1201).all(axis=None)
    gap = counts[counts.high <= 1]
    assert (gap[gap.stage == "pruned"]["count"] == 0).all()
    shares = gap.groupby(["seed", "stage"])["count"].sum() / counts.groupby(["seed", "stage"])["count"].sum()
    gaps = table(runs, "gaps")
    for row in gaps[(gaps.rewind_step == 5) & (gaps.level == 2)].itertuples():
        assert shares[row.seed, row.stage] == row.below


def test_refill_ends_where_the_stored_training_ended(runs):
    e, course, gaps = runs.experiment, table(runs, "refill"), table(runs, "gaps")
    methods = table(runs, "retraining_methods").set_index(["seed", "kind"]).below
    gaps = gaps[(gaps.rewind_step == 5) & (gaps.level == 2)].set_index(["seed", "stage"]).below
    for seed in range(e.seeds):
        for kind in chains.CHAINS:
            below = course[(course.seed == seed) & (course.kind == kind)].set_index("step").below
            assert below[e.steps] == methods[seed, kind] and (below[5] == 0) == (kind != "imp")
        below = course[(course.seed == seed) & (course.kind == "imp")].set_index("step").below
        assert below.index[0] == 5 and below.index[-1] == e.steps and below.index.is_monotonic_increasing
        assert below[5] == gaps[seed, "rewound"] and below[e.steps] == gaps[seed, "retrained"]
    assert course.share.min() == 0 and course.share.max() == 1


def test_a_course_is_noted_in_training_or_found_by_training_again(runs, tmp_path):
    store = Store(tmp_path)
    shutil.copytree(runs.store.root, store.root, dirs_exist_ok=True)
    again, places = Runs(runs.experiment, store), [Place(kind, 1, 5, 2) for kind in chains.CHAINS]
    noted = again.courses(places)
    tickets = {place: store.provenance(again.name(place) + TENSORS) for place in places}
    for place in places:
        (store.root / f"{again.name(place)}-course{TENSORS}.json").unlink()
    assert again.courses(places) == noted
    assert tickets == {place: store.provenance(again.name(place) + TENSORS) for place in places}  # not written again
    with pytest.raises(UnmaskError, match="level=0: is not retrained after a cut"):
        again.courses([Place("imp", 1, 0, 0)])


def test_next_cuts_are_projections_of_the_networks_they_name(runs):
    cuts = table(runs, "next_cuts").set_index(["seed", "level", "cut"])
    solution, dense = runs.level(1, 5, 2), runs.level(1, 5, 0)
    for cut, state, mask in (("retrained", solution.state, runs.level(1, 5, 3).mask),
                             ("one-shot", dense.state, pruning.prune_magnitude(*dense, runs.survivors(3)))):
        networks.load_state(runs.network, pruning.apply(mask, state))
        assert cuts.test_error[1, 3, cut] == evaluate(runs.network, runs.data.test).error
    removed = [solution.state[name][kept & ~runs.level(1, 5, 3).mask[name]] for name, kept in solution.mask.items()]
    assert cuts.length[1, 3, "retrained"] == pytest.approx(float(torch.cat(removed).norm()))
    # without retraining the cuts are one: that of level 2 from level 0 is continued and one-shot at once
    assert cuts.length[0, 2, "continued"] == cuts.length[0, 2, "one-shot"]
    assert (0, 1, "continued") not in cuts.index


@pytest.mark.parametrize("kind", RETRAININGS)
def test_methods_go_on_from_the_pruned_weights(runs, kind):
    e = runs.experiment
    before, after = runs.tickets([Place(kind, 0, 5, level) for level in (1, 2)])
    mask = pruning.prune_magnitude(*before, runs.survivors(2))
    assert all(torch.equal(mask[name], after.mask[name]) for name in mask)
    lr = learning_rate(e, e.steps - 1) if kind == "fine-tuned" else None
    (again,) = train(e, runs.data.train, [Start(before.state, mask, (0, "order", 2))], 5, lr=lr)
    assert all(torch.equal(again[e.steps][name], after.state[name]) for name in again[e.steps])


def test_methods_share_the_dense_run_and_the_first_mask(runs):
    dense = [runs.tickets([Place(kind, 0, 5, 0)])[0] for kind in chains.CHAINS]
    first = [runs.tickets([Place(kind, 0, 5, 1)])[0] for kind in chains.CHAINS]
    for name in runs.dense_mask:
        assert all(torch.equal(ticket.state[name], dense[0].state[name]) for ticket in dense)
        assert all(torch.equal(ticket.mask[name], first[0].mask[name]) for ticket in first)
    assert len({float(ticket.state["stem.weight"].norm()) for ticket in first}) == 3


def test_a_constant_learning_rate_is_the_schedules_where_that_is_constant(runs):
    e = runs.experiment
    start = Start(runs.rewind_point(0, 5), runs.dense_mask, (0, "order", 0))
    until = int(e.milestones[0] * e.steps)
    scheduled, constant, smaller = (train(e, runs.data.train, [start], 5, [until], lr=lr)[0][until]
                                    for lr in (None, e.lr, e.lr / 2))
    assert all(torch.equal(scheduled[name], constant[name]) for name in scheduled)
    assert not torch.equal(scheduled["stem.weight"], smaller["stem.weight"])


def test_the_methods_table_says_of_imp_what_the_other_tables_say(runs):
    methods = table(runs, "retraining_methods")
    imp = methods[methods.kind == "imp"].set_index("seed")
    controls = table(runs, "controls")
    controls = controls[(controls.kind == "imp") & (controls.level == 2)].set_index("seed")
    cuts = table(runs, "next_cuts").set_index(["seed", "level", "cut"])
    gaps = table(runs, "gaps").set_index(["seed", "rewind_step", "level", "stage"])
    for seed in range(2):
        assert imp.barrier[seed] == controls.barrier[seed] and imp.test_error[seed] == controls.test_error[seed]
        assert imp.cut_error[seed] == cuts.test_error[seed, 2, "retrained"]
        assert imp.below[seed] == gaps.below[seed, 5, 2, "retrained"]
    assert np.isfinite(methods.select_dtypes("number")).all(axis=None)
