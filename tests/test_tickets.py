"""Finding 0: tables against the networks they are about, verdicts from hand-made tables."""

import numpy as np
import pytest
from hand_made import E, controls, levels

import unmask
from unmask import pruning
from unmask.findings import tickets
from unmask.lab import Lab
from unmask.train import Start, train


@pytest.fixture(scope="module")
def lab(smoke_store):
    return Lab(unmask.experiment("smoke"), smoke_store)


def test_references_are_the_dense_network_retrained_with_orders_of_their_own(lab):
    e, found = lab.experiment, unmask.table("references", lab.experiment, lab.store, 1)
    assert len(found) == 2 * tickets.AGAIN
    for row in found.itertuples():
        order = (row.seed, "order", 0, "again", row.again)
        start = Start(lab.rewind_point(row.seed, 5), lab.dense_mask, order)
        state = train(e, lab.data.train, [start], 5)[0].states[e.steps]
        assert row.test_error == lab.evaluate(state).error


def test_layers_count_the_survivors_of_every_level(lab):
    found = unmask.table("layers", lab.experiment, lab.store, 1)
    for (seed, step, level), rows in found.groupby(["seed", "rewind_step", "level"]):
        assert rows.survivors.sum() == lab.survivors(level)
        mask = lab.level(seed, step, level).mask
        assert rows.survivors.sum() == pruning.survivors(mask) and len(rows) == len(mask)
        assert rows.weights.sum() == lab.survivors(0)


def test_chance_is_the_error_of_naming_the_most_frequent_class(lab):
    found = unmask.table("levels", lab.experiment, lab.store, 1)
    counts = np.bincount(lab.data.test.y.numpy())
    assert (found.chance == 1 - counts.max() / counts.sum()).all()


def judged(others=None, **errors):
    tables = {"levels": levels(**errors), "controls": controls() if others is None else others}
    return tickets.verdicts(tables, E).table


def test_the_papers_picture_holds_throughout():
    assert judged().verdict.tolist() == ["holds"] * 6


def test_no_sparse_level_that_matches_fails_the_first_claim_and_leaves_nothing_to_compare():
    found = judged(late=(0.04, 0.04, 0.2, 0.2), others=controls().assign(test_error=0.2))
    assert found.verdict.tolist() == ["fails"] + ["undecided"] * 5


def test_controls_as_good_as_imp_fail_the_claims_that_they_are_not():
    assert judged(controls(0.045, 0.0)).verdict.tolist()[2:] == ["fails"] * 4


def test_early_rewinding_is_judged_where_late_rewinding_matches():
    found = judged(early=(0.04, 0.04, 0.045, 0.9))
    # level 2 alone, half a point above the dense network; level 3 is lost to late rewinding
    assert found.verdict[1] == "fails" and found["mean"][1] == pytest.approx(-0.5)


def test_a_chain_that_matches_to_its_end_gives_a_bound():
    shown = tickets.verdicts({"levels": levels(late=(0.04, 0.04, 0.04, 0.04))}, E)
    assert shown.evidence[0].bounds == list(range(6)) and shown.evidence[0].verdict == "holds"
    assert shown.evidence[0].words().startswith("≥")


def test_density_and_excess_are_what_the_prose_quotes():
    numbers = tickets.numbers({"levels": levels()}, E)
    assert numbers["ticket_density"] == pytest.approx(15)
    assert numbers["early_excess"] == pytest.approx(8)  # at level 2, where late rewinding matches
    assert numbers["dense_error"] == pytest.approx(4) and numbers["ticket_limit"] == 20
