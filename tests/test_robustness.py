"""Finding 2: moves of exactly the length asked for, inside the axial subspace, what they are
compared with, and verdicts from hand-made tables."""

import hand_made
import pandas as pd
import pytest
import torch

import unmask
from unmask import pruning
from unmask.barriers import direction, distance
from unmask.experiments import experiment
from unmask.findings import robustness
from unmask.findings.robustness import perturbed, pruned_rewind_points
from unmask.lab import Lab
from unmask.train import Start, generator, train
from unmask.verdicts import barrier


@pytest.fixture(scope="module")
def lab(smoke_store):
    return Lab(experiment("smoke"), smoke_store)


@pytest.fixture(scope="module")
def measured(lab):
    return unmask.table("perturbations", lab.experiment, lab.store, 1)


def row(measured, **keys):
    """The row of seed 0, rewound to step 5, level 2."""
    here = measured.query("seed == 0 and rewind_step == 5 and level == 2")
    for name, value in keys.items():
        here = here[here[name] == value]
    (found,) = here.itertuples()
    return found


def second_order(lab, state, level=2):
    """What a state trains to in level 2's mask, with the second data order."""
    mask, order = lab.level(0, 5, level).mask, (0, "order", level, "second")
    e = lab.experiment
    return train(e, lab.data.train, [Start(state, mask, order)], 5)[0].states[e.steps]


def test_directions_have_length_one_stay_in_the_subspace_and_repeat(lab):
    mask = lab.level(0, 5, 2).mask
    one, other, again = (direction(mask, generator(0, "d", which)) for which in (0, 1, 0))
    assert set(one) == set(mask)
    assert distance(one) == pytest.approx(1, abs=1e-6)
    for name, kept in mask.items():
        assert (one[name][~kept] == 0).all() and (one[name][kept] != 0).all()
        assert torch.equal(one[name], again[name])
    # independent: in D dimensions the cosine of two random directions has standard deviation
    # 1 / sqrt(D)
    cosine = sum(float((one[name] * other[name]).sum()) for name in mask)
    assert abs(cosine) < 4 / pruning.survivors(mask) ** 0.5


def test_step_length_is_the_norm_of_what_the_next_mask_removes(lab):
    rewind_point = lab.rewind_point(0, 5)
    here, there = (lab.level(0, 5, level).mask for level in (1, 2))
    gone = torch.cat([rewind_point[name][here[name] & ~there[name]] for name in here])
    step = distance(*pruned_rewind_points(lab, 0, 5, 1))
    assert step == pytest.approx(float(gone.norm()), rel=1e-5)


def test_starts_lie_at_exactly_their_distance_from_the_pruned_rewind_point(lab):
    far = Lab(lab.experiment.but(perturbation_lengths=(0.0, 0.25, 1.0, 4.0)), lab.store)
    mask = lab.level(1, 5, 1).mask
    center, there = pruned_rewind_points(lab, 1, 5, 1)
    step = distance(center, there)
    *pairs, imp = perturbed(far, 1, 5, 1)
    assert [pair.length for pair in pairs] == [0.0, 0.25, 1.0, 4.0, 1.0]
    assert [pair.kind for pair in pairs] == ["opposite"] * 4 + ["random"]
    for pair in pairs:
        away = pair.length * step * (0.5 if pair.kind == "opposite" else 1)
        for start in (pair.first, pair.second):
            assert distance(start, center) == pytest.approx(away, rel=1e-5)
            for name, tensor in start.items():
                if name in mask:
                    assert (tensor[~mask[name]] == 0).all()
                else:
                    assert torch.equal(tensor, center[name])
        # apart: by the length itself, or by sqrt(2) of it, for random directions are nearly
        # perpendicular
        apart = distance(pair.first, pair.second)
        if pair.kind == "opposite":
            assert apart == pytest.approx(pair.length * step, rel=1e-5)
        else:
            assert apart == pytest.approx(2**0.5 * step, rel=0.1)
    assert (imp.kind, imp.length) == ("imp", 1.0)
    assert distance(imp.first, center) == distance(imp.second, there) == 0


def test_directions_do_not_depend_on_the_length_but_on_all_else(lab):
    far = Lab(lab.experiment.but(perturbation_lengths=(0.0, 1.0, 4.0)), lab.store)

    def unit(seed, step, level, kind, length, which=0):
        center, _ = pruned_rewind_points(lab, seed, step, level)
        (pair,) = (p for p in perturbed(far, seed, step, level) if p[:2] == (kind, length))
        start = (pair.first, pair.second)[which]
        way = torch.cat([(start[name] - center[name]).flatten() for name in lab.dense_mask])
        return way / way.norm()

    reference = unit(0, 5, 1, "opposite", 1.0)
    for same in (unit(0, 5, 1, "opposite", 4.0), unit(0, 5, 1, "random", 1.0)):
        torch.testing.assert_close(same, reference, rtol=0, atol=1e-5)
    backwards = -unit(0, 5, 1, "opposite", 1.0, which=1)
    torch.testing.assert_close(backwards, reference, rtol=0, atol=1e-5)
    for other in ((1, 5, 1), (0, 0, 1), (0, 5, 2)):
        assert abs(float(unit(*other, "opposite", 1.0) @ reference)) < 0.2
    assert abs(float(unit(0, 5, 1, "random", 1.0, which=1) @ reference)) < 0.2


def test_length_zero_is_the_level_against_itself_with_another_data_order(lab, measured):
    path = lab.path(lab.level(0, 5, 2).state, second_order(lab, lab.rewind_point(0, 5)))
    found = row(measured, length=0)
    assert (found.test_error, found.other_error) == tuple(path.test_error.iloc[[0, -1]])
    assert found.barrier == barrier(path)


def test_imp_s_direction_starts_one_of_two_at_the_next_pruned_rewind_point(lab, measured):
    there = pruning.apply(lab.level(0, 5, 3).mask, lab.rewind_point(0, 5))
    path = lab.path(lab.level(0, 5, 2).state, second_order(lab, there))
    found = row(measured, kind="imp")
    assert found.length == 1 and found.barrier == barrier(path)


def test_dense_pairs_start_from_the_rewind_point_without_momentum(lab):
    """The dense run passed the rewind step with momentum, so it is not what a perturbation of
    length 0 ends in."""
    one = dict(probe_levels=(0,), perturbation_lengths=(0.0, 1.0), seeds=1, rewind_steps=(5,))
    e = lab.experiment.but(**one)
    found = unmask.table("perturbations", e, lab.store, 1).iloc[0]
    start = Start(lab.rewind_point(0, 5), lab.dense_mask, (0, "order", 0))
    trained = train(e, lab.data.train, [start], 5)[0].states[e.steps]
    path = lab.path(trained, second_order(lab, lab.rewind_point(0, 5), level=0))
    assert (found.test_error, found.other_error) == tuple(path.test_error.iloc[[0, -1]])
    assert found.barrier == barrier(path)


# Verdicts from hand-made tables

E = hand_made.E.but(probe_levels=(1, 2))


def tables(noise=0.0, step=None, random=None, imp=None, kind="opposite"):
    """Barriers: of pairs that are not perturbed, of those d_L apart, along two random directions,
    along IMP's; as in the paper where they are not given."""
    pairs = []
    for at, level in ((0, 1), (0, 2), (10, 1), (10, 2)):
        usual = 0.001 if (at, level) == (10, 1) else 0.5
        rows = [
            (kind, 0.0, noise),
            (kind, 1.0, usual if step is None else step),
            (kind, 2.0, 0.9),
            ("imp", 1.0, usual if imp is None else imp),
        ]
        if kind != "random":
            rows.append(("random", 1.0, usual if random is None else random))
        for name, length, height in rows:
            for seed in range(3):
                pairs.append((seed, at, level, name, length, height, 2.0, 10.0))
    keys = ["seed", "rewind_step", "level"]
    columns = [*keys, "kind", "length", "barrier", "step_length", "start_norm"]
    return {
        "levels": hand_made.levels(seeds=3),
        "perturbations": pd.DataFrame(pairs, columns=columns),
    }


def verdicts(**heights):
    return robustness.verdicts(tables(**heights), E).table.verdict.tolist()


def test_the_papers_picture_holds():
    table = robustness.at_step_length(tables(), E)
    assert len(table) == 3 * 2 * 2 and table.matching.sum() == table.step_connected.sum() == 3
    assert verdicts() == ["holds"] * 6


def test_barriers_where_there_should_be_none_and_none_where_there_should_be():
    assert verdicts(step=0.5) == ["fails", "holds", "holds", "holds", "holds", "holds"]
    assert verdicts(step=0.001)[3:5] == ["fails", "fails"]
    assert verdicts(step=0.001, noise=0.1)[5] == "fails"
    assert verdicts(random=0.5)[:3] == ["holds", "fails", "holds"]
    assert verdicts(imp=0.5)[:3] == ["holds", "holds", "fails"]


def test_tables_from_before_there_were_opposite_pairs_are_judged_by_what_they_have():
    shown = robustness.verdicts(tables(kind="random"), E)
    assert shown.table.verdict.tolist() == ["holds"] * 5
    assert "each moved by d_L" in shown.evidence[0].claim and shown.evidence[0].headline == "2"


def test_numbers_are_geometric_means_of_barriers():
    numbers = robustness.numbers(tables(), E)
    assert numbers["barrier_matching"] == pytest.approx(0.1)
    assert numbers["barrier_other"] == numbers["barrier_first"] == pytest.approx(50)
    shown = robustness.robustness_table(tables(), E)
    assert shown.loc[(1, 10), "connected at d_L (seeds)"] == 3
    assert shown.loc[(1, 10), "d_L (% of the norm)"] == 20
