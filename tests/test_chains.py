"""Chains: the invariants of iterative magnitude pruning, its controls, and tables that do not depend on who ran."""

import pytest
import torch

from unmask import chains, measure, pruning
from unmask import train as training
from unmask.chains import CONTROLS, Runs
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.store import Store
from unmask.train import Start, generator, train


@pytest.fixture
def runs(smoke_store):
    return Runs(experiment("smoke"), smoke_store)


def test_masks_nest_and_count_exactly(runs):
    for step in runs.experiment.rewind_steps:
        masks = [runs.level(0, step, level).mask for level in range(4)]
        assert [pruning.survivors(mask) for mask in masks] == [1876, 1501, 1201, 961]
        for denser, sparser in zip(masks, masks[1:]):
            assert all((sparser[name] <= denser[name]).all() for name in sparser)


def test_each_mask_is_the_magnitude_mask_of_the_solution_before(runs):
    for level in range(3):
        solution, mask = runs.level(1, 5, level)
        expected = pruning.prune_magnitude(solution, mask, runs.survivors(level + 1))
        assert all(torch.equal(expected[name], kept) for name, kept in runs.level(1, 5, level + 1).mask.items())


def test_pruned_weights_of_solutions_are_exactly_zero(runs):
    tickets = [runs.level(0, 5, 3)] + [runs.control(kind, 0, 2) for kind in CONTROLS]
    for state, mask in tickets:
        for name, kept in mask.items():
            assert (state[name][~kept] == 0).all() and (state[name][kept] != 0).any()


def test_a_level_is_the_rewind_point_times_its_mask_trained_to_the_end(runs):
    e = runs.experiment
    state, mask = runs.level(0, 5, 2)
    start = Start(runs.rewind_point(0, 5), mask, (0, "order", 2))
    again = train(e, runs.data.train, [start], start=5)[0][e.steps]
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_rewind_points_lie_on_the_dense_run(runs, tmp_path):
    e = runs.experiment
    start = Start(runs.initial(0), runs.dense_mask, (0, "order", 0))
    (again,) = train(e, runs.data.train, [start], snapshots=[0, 5, e.steps])
    for step in (0, 5):
        assert all(torch.equal(again[step][n], t) for n, t in runs.rewind_point(0, step).items())
    assert all(torch.equal(again[e.steps][n], t) for n, t in runs.level(0, 5, 0).state.items())
    assert all(torch.equal(again[0][n], t) for n, t in runs.initial(0).items())
    # asked for on its own, in an empty store, a rewind point is the same
    alone = Runs(e, Store(tmp_path / "alone")).rewind_point(0, 5)
    assert all(torch.equal(again[5][n], t) for n, t in alone.items())


def test_controls_are_as_sparse_as_imp_and_differ_as_they_should(runs):
    imp = runs.level(0, 5, 2)
    masks = {kind: runs.control(kind, 0, 2).mask for kind in CONTROLS}
    for mask in masks.values():
        assert pruning.survivors(mask) == pruning.survivors(imp.mask)

    def per_layer(mask):
        return [int(kept.sum()) for kept in mask.values()]

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    assert per_layer(masks["shuffled"]) == per_layer(imp.mask) and not same(masks["shuffled"], imp.mask)
    assert same(masks["reinitialized"], imp.mask)
    assert not same(masks["random"], imp.mask) and per_layer(masks["random"]) != per_layer(imp.mask)
    assert same(masks["one-shot"], pruning.prune_magnitude(runs.level(0, 0, 0).state, runs.dense_mask, runs.survivors(2)))


def test_repeated_places_come_back_as_often_as_asked_for(runs):
    from unmask.chains import Place

    places = [Place("imp", 0, 5, 1), Place("imp", 0, 0, 0), Place("imp", 0, 5, 1), Place("imp", 0, 5, 0)]
    tickets = runs.tickets(places)
    assert len(tickets) == 4 and torch.equal(tickets[0].state["stem.weight"], tickets[2].state["stem.weight"])
    assert torch.equal(tickets[1].state["stem.weight"], tickets[3].state["stem.weight"])


def test_results_do_not_depend_on_the_callers_threads(runs, tmp_path):
    torch.set_num_threads(4)
    other = Runs(runs.experiment, Store(tmp_path / "threads"))
    assert all(torch.equal(other.level(0, 5, 1).state[n], t) for n, t in runs.level(0, 5, 1).state.items())
    parts = [measure.read_part(r, "segments", (0, 5)) for r in (runs, other)]
    assert parts[0].equals(parts[1]) and torch.get_num_threads() == 4


def test_damaged_entries_are_found_before_anything_is_built_on_them(runs, tmp_path, capsys):
    store = Store(tmp_path / "damaged")
    before = measure.table("levels", runs.experiment, store, 1)
    ticket = store.root / (runs.name(chains.Place("imp", 0, 5, 1)) + ".safetensors")
    ticket.write_bytes(ticket.read_bytes()[:-1] + b"?")
    (part,) = store.root.glob("*/seed0/rewind00005/levels-*.csv.json")
    part.unlink()
    capsys.readouterr()
    assert measure.table("levels", runs.experiment, store, 1).equals(before)
    assert capsys.readouterr().err.count("computing it again") == 1 and list(map(store.damage, store.names())).count(
        None) == len(list(store.names()))


def test_a_table_that_is_there_is_read_without_what_it_was_made_from(runs, monkeypatch):
    before, read, whole = measure.table("levels", runs.experiment, runs.store, 1), [], Store._read_whole
    monkeypatch.setattr(Store, "_read_whole", lambda store, name: read.append(name) or whole(store, name))
    assert measure.table("levels", runs.experiment, runs.store, 1).equals(before)
    assert read and all("/levels-" in name for name in read)


@pytest.mark.parametrize("table, seeds, steps", [
    ("levels", {0, 1}, {0, 2, 5}), ("magnitudes", {0, 1}, {5}), ("landscape", {0}, {0, 5}), ("controls", {0, 1}, {5})])
def test_only_what_a_table_needs_is_trained(tiny, store, table, seeds, steps):
    runs = Runs(tiny.but(rewind_steps=(0, 2, 5), control_every=1), store)
    trained = [place for wave in measure.plan(runs, [table], 2) for task in wave if task.function.endswith("train_places")
               for place in task.args]
    assert {place.seed for place in trained} == seeds
    assert {place.rewind_step for place in trained if place.level} == steps
    assert len(set(trained)) == len(trained)


def test_what_exists_is_not_trained_again(runs, monkeypatch):
    runs.level(0, 5, 3)
    monkeypatch.setattr(chains, "train_all", lambda *_, **__: pytest.fail("trained again"))
    runs.level(0, 5, 3)
    runs.rewind_point(0, 5)


def test_seeds_levels_and_rewind_steps_extend_a_store(runs, monkeypatch):
    e, trained = runs.experiment, []
    measure.compute(e, runs.store, jobs=1, tables=("levels",))

    def counting(e, split, starts, *args, **kwargs):
        trained.extend(starts)
        return train(e, split, starts, *args, **kwargs)

    monkeypatch.setattr(training, "train", counting)
    measure.compute(e.but(seeds=3, levels=4), runs.store, jobs=1, tables=("levels",))
    # a new seed: dense and 4 levels for each of 2 rewind steps; the old seeds: one more level for each of 2
    assert len(trained) == (1 + 2 * 4) + 2 * 2 * 1


def test_the_steps_that_an_empty_store_costs_are_counted_right(tiny, store, monkeypatch):
    taken = []

    def counting(e, split, starts, start=0, *args, **kwargs):
        states = train(e, split, starts, start, *args, **kwargs)
        taken.append(len(starts) * (max(states[0]) - start))
        return states

    monkeypatch.setattr(training, "train", counting)
    measure.compute(tiny, store, 1)
    assert sum(taken) == sum(measure.training_steps(tiny).values())


def test_unknown_places_in_the_chain_are_refused(runs):
    for call, said in ((lambda: runs.level(0, 7, 1), "rewind_step=7: the experiment has \\[0, 5\\]"),
                       (lambda: runs.level(0, 5, 4), "level=4: the experiment has levels 0 to 3"),
                       (lambda: runs.level(0, 5, -1), "level=-1"),
                       (lambda: runs.control("magic", 0, 2), "kind='magic': must be one of imp, lr-rewound")):
        with pytest.raises(UnmaskError, match=said):
            call()


def test_generators_differ_by_every_name_and_repeat():
    draws = {str(generator(*names).initial_seed()) for names in (
        (0, "order", 1), (1, "order", 1), (0, "order", 2), (0, "shuffle", 1), (0, "order", 1, 0))}
    assert len(draws) == 5
    assert generator(0, "a").initial_seed() == generator(0, "a").initial_seed()


def test_two_cold_runs_with_one_and_two_jobs_give_byte_identical_tables(tmp_path):
    e = experiment("smoke")
    files = []
    for jobs in (1, 2):
        store = Store(tmp_path / str(jobs))
        for name in measure.TABLES:
            measure.table(name, e, store, jobs)
        files.append({name: (store.root / name).read_bytes() for name in store.names()})
    assert files[0].keys() == files[1].keys() and len(files[0]) > 40
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


def test_tables_have_a_row_for_every_case(runs):
    e, store = runs.experiment, runs.store
    rows = {name: len(measure.table(name, e, store, 1)) for name in measure.TABLES}
    chains_, pairs = 2 * 2, 3
    assert rows == {"levels": chains_ * 4, "segments": chains_ * pairs * (3 + 3), "pairs": chains_ * 6,
                    "controls": 2 * 1 * 5, "magnitudes": 2 * 1 * 4 * 61, "gaps": chains_ * pairs * 4,
                    "refill": 2 * 3 * 1 * 23, "next_cuts": 2 * (2 + 3 + 3), "retraining_methods": 2 * 1 * 3,
                    "landscape": 4 * (3 + 3 + 2 + 49),
                    "perturbations": chains_ * 2 * (3 + 1), "spectra": rows["spectra"],
                    "curvatures": 3 + 1, "predictions": 3 * 2 * ((3 + 1) + (1 + 1)), "displacements": 2 * (1 + 8) * 6,
                    "prunings": 2 * 2 * 2 * 2}
    assert rows["spectra"] > 4 * 50


def test_the_level_table_says_what_evaluation_says(runs):
    from unmask import networks
    from unmask.train import evaluate

    table = measure.table("levels", runs.experiment, runs.store, 1)
    row = table[(table.seed == 1) & (table.rewind_step == 5) & (table.level == 3)].iloc[0]
    networks.load_state(runs.network, runs.level(1, 5, 3).state)
    assert row.test_error == evaluate(runs.network, runs.data.test).error
    assert row.survivors == 961 and row.density == 961 / 1876


def test_train_error_may_be_that_of_the_first_samples(smoke_store):
    from unmask import networks
    from unmask.train import evaluate

    some = Runs(experiment("smoke", train_measured=50), smoke_store)
    rows = measure.table("levels", some.experiment, smoke_store, 1).set_index(["seed", "rewind_step", "level"])
    everything = measure.table("levels", experiment("smoke"), smoke_store, 1).set_index(["seed", "rewind_step", "level"])
    assert (rows.test_error == everything.test_error).all() and (rows.train_loss != everything.train_loss).all()
    networks.load_state(some.network, some.level(1, 5, 3).state)
    first = some.data.train.head(50)
    assert len(first.y) == 50 and rows.train_loss[1, 5, 3] == evaluate(some.network, first).loss


def test_unknown_table_is_refused(runs):
    with pytest.raises(UnmaskError, match="table='nope': must be one of levels, segments"):
        measure.table("nope", runs.experiment, runs.store)
