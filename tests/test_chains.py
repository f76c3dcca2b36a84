"""Chains: the invariants of iterative magnitude pruning and its controls, what is planned for them,
and tables that do not depend on who ran."""

from typing import NamedTuple

import pandas as pd
import pytest
import torch
import unmask
from unmask import chains, networks, pruning, tables
from unmask import train as training
from unmask.cli import main
from unmask.chains import CONTROLS, KINDS, Place, dense, place
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.store import Store
from unmask.train import Start, evaluate, generator, train


@pytest.fixture
def smoke(smoke_store):
    return Lab(experiment("smoke"), smoke_store)


def same(one, other):
    """Two states or masks, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Cold(NamedTuple):
    """All tables of `smoke`, computed in an empty store by one process, and what was seen."""

    lab: Lab
    tables: dict
    steps: list  # that were trained
    missing: list  # parents that were not in the store when they were needed
    unplanned: list  # networks of the chains that were trained while a table was measured
    asked: list  # networks that a part of a table asked for


of_cold = pytest.mark.xdist_group("cold")  # so that one worker of pytest computes it


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    steps, missing, unplanned, asked, measuring = [], [], [], [], []

    def counted(e, split, starts, start=0, *args, **kwargs):
        trained = train(e, split, starts, start, *args, **kwargs)
        steps.append(len(starts) * (max(trained[0].states) - start))
        return trained

    def look_for(lab, child, parents):
        missing.extend((child, at) for at in parents if tables.entry(lab, at) not in lab.store)

    def started(lab, at, start=Lab.start):
        unplanned.extend((part, at) for part in measuring)
        look_for(lab, at, chains.parents(lab.experiment, at))
        return start(lab, at)

    def tickets(lab, places, tickets=Lab.tickets):
        asked.extend((part, at) for part in measuring[-1:] for at in places)
        return tickets(lab, places)

    def read(table, lab, keys, read=tables.Table.read):
        look_for(lab, (table.name, keys), table.parents(lab.experiment, keys))
        measuring.append((table.name, keys))
        part = read(table, lab, keys)
        measuring.pop()
        return part

    store = Store(tmp_path_factory.mktemp("cold"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", counted)
        patch.setattr(Lab, "start", started)
        patch.setattr(Lab, "tickets", tickets)
        patch.setattr(tables.Table, "read", read)
        found = unmask.measure("smoke", store=store, jobs=1)
    return Cold(Lab(experiment("smoke"), store), found, steps, missing, unplanned, asked)


# What iterative magnitude pruning promises


def test_masks_nest_and_count_exactly(smoke):
    for step in smoke.experiment.rewind_steps:
        masks = [smoke.level(0, step, level).mask for level in range(4)]
        assert [pruning.survivors(mask) for mask in masks] == [1876, 1501, 1201, 961]
        for denser, sparser in zip(masks, masks[1:]):
            assert all((sparser[name] <= denser[name]).all() for name in sparser)


def test_each_mask_is_the_magnitude_mask_of_the_solution_before(smoke):
    for level in range(3):
        solution, mask, _ = smoke.level(1, 5, level)
        expected = pruning.prune_magnitude(solution, mask, smoke.survivors(level + 1))
        assert same(expected, smoke.level(1, 5, level + 1).mask)


def test_pruned_weights_of_solutions_are_exactly_zero(smoke):
    for ticket in [
        smoke.level(0, 5, 3),
        *(smoke.ticket(kind, 0, smoke.experiment.latest, 2) for kind in CONTROLS),
    ]:
        for name, kept in ticket.mask.items():
            assert (ticket.state[name][~kept] == 0).all() and (ticket.state[name][kept] != 0).any()


def test_a_level_is_the_rewind_point_times_its_mask_trained_to_the_end(smoke):
    e = smoke.experiment
    state, mask, _ = smoke.level(0, 5, 2)
    start = Start(smoke.rewind_point(0, 5), mask, (0, "order", 2))
    again = train(e, smoke.data.train, [start], start=5)[0].states[e.steps]
    assert same(again, state)


def test_rewind_points_lie_on_the_dense_run(smoke, tmp_path):
    e = smoke.experiment
    start = Start(smoke.initial(0), smoke.dense_mask, (0, "order", 0))
    (again,) = train(e, smoke.data.train, [start], snapshots=[0, 5, e.steps])
    for step in (0, 5):
        assert same(again.states[step], smoke.rewind_point(0, step))
    assert same(again.states[e.steps], smoke.level(0, 5, 0).state)
    assert same(again.states[0], smoke.initial(0))
    # asked for on its own, in an empty store, a rewind point is the same
    alone = Lab(e, Store(tmp_path / "alone")).rewind_point(0, 5)
    assert same(again.states[5], alone)


def test_controls_are_as_sparse_as_imp_and_differ_as_they_should(smoke):
    imp = smoke.level(0, 5, 2).mask
    masks = {kind: smoke.ticket(kind, 0, smoke.experiment.latest, 2).mask for kind in CONTROLS}
    for mask in masks.values():
        assert pruning.survivors(mask) == pruning.survivors(imp)

    def per_layer(mask):
        return [int(kept.sum()) for kept in mask.values()]

    assert per_layer(masks["shuffled"]) == per_layer(imp) and not same(masks["shuffled"], imp)
    assert same(masks["reinitialized"], imp)
    assert not same(masks["random"], imp) and per_layer(masks["random"]) != per_layer(imp)
    solution = smoke.level(0, 0, 0).state
    at_once = pruning.prune_magnitude(solution, smoke.dense_mask, smoke.survivors(2))
    assert same(masks["one-shot"], at_once)


def test_repeated_places_come_back_as_often_as_asked_for(smoke):
    asked = [Place("imp", 0, 5, 1), dense(0), Place("imp", 0, 5, 1), Place("imp", 0, 5, 0)]
    tickets = smoke.tickets(asked)
    assert len(tickets) == 4
    assert same(tickets[0].state, tickets[2].state) and same(tickets[1].state, tickets[3].state)
    assert not same(tickets[0].state, tickets[1].state)


@pytest.mark.parametrize(
    "changes",
    # the rate is constant throughout, or from the last rewind step on: the end of the first half
    [dict(milestones=()), dict(milestones=(0.5,), rewind_steps=(0, 12))],
)
def test_fine_tuning_at_a_constant_rate_is_learning_rate_rewinding(tiny, store, changes):
    e = tiny.but(**changes)
    constant = Lab(e, store)
    for seed, level in ((0, 1), (1, 2)):
        places = [place(e, kind, seed, e.latest, level) for kind in chains.RETRAININGS]
        assert places == [Place("lr-rewound", seed, e.latest, level)] * 2
    rewound, tuned = (constant.ticket(kind, 0, e.latest, 1) for kind in chains.RETRAININGS)
    assert same(rewound.state, tuned.state) and rewound.course == tuned.course
    stored = [name for name in store.names() if "level01" in name]
    assert stored == [constant.name(places[0]._replace(seed=0, level=1)) + ".safetensors"]
    # what was left out is what fine-tuning would have computed
    rate = training.learning_rate(e, e.steps - 1)
    start = constant.start(Place("fine-tuned", 0, e.latest, 1))
    (again,) = train(e, constant.data.train, [start], e.latest, lr=rate)
    assert same(again.states[e.steps], tuned.state)


_LINEAR = dict(milestones=(), schedule="linear")


@pytest.mark.parametrize("changes", [{}, dict(milestones=(), warmup=0.5), _LINEAR])
def test_fine_tuning_and_learning_rate_rewinding_are_two_elsewhere(tiny, store, changes):
    e = tiny.but(**changes)
    lab = Lab(e, store)
    rewound, tuned = (place(e, kind, 0, 5, 1) for kind in chains.RETRAININGS)
    assert (rewound.kind, tuned.kind) == chains.RETRAININGS
    assert not same(*(ticket.state for ticket in lab.tickets([rewound, tuned])))
    assert {lab.name(at) + ".safetensors" for at in (rewound, tuned)} <= set(store.names())


def test_unknown_places_in_the_chain_are_refused(smoke):
    kinds = "imp, lr-rewound, fine-tuned, random, shuffled, reinitialized, one-shot"
    for asked, said in (
        (("imp", 0, 7, 1), "rewind_step=7: the experiment has [0, 5]"),
        (("imp", -1, 5, 1), "seed=-1: must be 0 or more"),
        (("imp", 0, 5, 4), "level=4: the experiment has levels 0 to 3"),
        (("imp", 0, 5, -1), "level=-1: the experiment has levels 0 to 3"),
        (("magic", 0, 5, 2), f"kind='magic': must be one of {kinds}"),
    ):
        with pytest.raises(UnmaskError) as caught:
            smoke.ticket(*asked)
        assert str(caught.value) == said


def test_generators_differ_by_every_name_and_repeat():
    names = (0, "order", 1), (1, "order", 1), (0, "order", 2), (0, "shuffle", 1), (0, "order", 1, 0)
    assert len({generator(*each).initial_seed() for each in names}) == 5
    assert generator(0, "a").initial_seed() == generator(0, "a").initial_seed()


# What is planned


@pytest.mark.parametrize(
    "table, seeds, steps",
    [
        ("levels", {0, 1}, {0, 2, 5}),
        ("magnitudes", {0, 1}, {5}),
        ("landscape", {0}, {0, 5}),
        ("controls", {0, 1}, {5}),
    ],
)
def test_only_what_a_table_needs_is_trained(tiny, store, table, seeds, steps):
    tables.load_findings()
    lab = Lab(tiny.but(rewind_steps=(0, 2, 5), control_every=1), store)
    tasks = tables.plan(lab, tables.graph(lab.experiment, [table]), 2)
    trained = [at for task in tasks if task.function is tables.train_places for at in task.args]
    assert {at.seed for at in trained} == seeds
    assert {at.rewind_step for at in trained if at.level} == steps
    assert len(set(trained)) == len(trained)


def test_parents_are_earlier_networks(tiny):
    for kind in KINDS:
        for level in range(1, tiny.levels + 1):
            child = place(tiny, kind, 1, 5, level)
            parents = chains.parents(tiny, child)
            assert parents[0] == dense(1) and len(parents) <= 2
            for parent in parents:
                assert parent.seed == 1 and parent.rewind_step in (0, 5)
                # a control may be made from the IMP level that is as sparse
                assert parent.level < level or (parent.kind == "imp" and kind in CONTROLS)
    assert chains.parents(tiny, dense(1)) == []


@pytest.mark.parametrize("jobs", [1, 2, 7])
@pytest.mark.parametrize("changes", [{}, dict(milestones=()), dict(rewind_steps=(0,), seeds=8)])
def test_each_node_is_in_one_task_which_names_what_it_is_made_from(tiny, store, changes, jobs):
    """Seeds that are trained side by side keep together, all the way down a chain."""
    lab = Lab(tiny.but(**changes), store)
    needs = tables.graph(lab.experiment, tables.known_tables())
    tasks, planned, lanes = tables.plan(lab, needs, jobs), {}, {}
    for task in tasks:
        own = {output.name for output in task.outputs}
        for output, needed in zip(task.outputs, task.needed):
            assert output.name not in planned, "computed twice"
            planned[output.name] = needed
            assert not needed & own, "needs itself"
        places = task.args if task.function is tables.train_places else ()
        for at in places:
            lanes.setdefault(at._replace(level=1), set()).add(tuple(p.seed for p in places))
    entries = {tables.entry(lab, n): {tables.entry(lab, p) for p in ps} for n, ps in needs.items()}
    assert planned == entries
    together = {at: groups for at, groups in lanes.items() if at.kind in chains.CHAINS}
    assert together and all(len(groups) == 1 for at, groups in together.items() if at.rewind_step)


@of_cold
def test_an_empty_store_costs_what_is_counted(cold):
    e = cold.lab.experiment
    nodes = tables.graph(e, tables.known_tables())
    counted = sum(tables.work(e, node)[0] for node in nodes if node[0] != "prunings")
    # how many ratios a search takes is not known beforehand
    searched = (cold.tables["prunings"].weights != "projection").sum() * (e.steps - e.latest)
    assert sum(cold.steps) == counted + searched and counted > 0
    guessed = sum(tables.work(e, node)[0] for node in nodes if node[0] == "prunings")
    assert 0.5 < guessed / searched < 2
    assert {tables.entry(cold.lab, node) for node in nodes} <= set(cold.lab.store.names())
    assert tables.complete(cold.lab, tables.known_tables()) == tables.known_tables()


@of_cold
def test_all_that_is_computed_finds_what_it_is_made_from(cold):
    """And no part of a table trains a network of the chains, as it would if it did not declare
    that it needs it."""
    assert cold.missing == [] and cold.unplanned == []


@of_cold
def test_a_table_needs_what_its_parts_ask_for(cold):
    """Each by itself, so that it can be computed alone, and its trainings in parallel."""
    e, needed = cold.lab.experiment, {}
    for (name, keys), at in cold.asked:
        if (name, keys) not in needed:
            waiting = list(tables.TABLES[name].parents(e, keys))
            known = needed[name, keys] = set()
            while waiting:
                node = waiting.pop()
                known.add(node)
                if isinstance(node, tables.Part):
                    waiting += tables.TABLES[node.table].parents(e, node.keys)
                else:
                    waiting += chains.parents(e, node)
        assert at in needed[name, keys], (name, keys, at)
    of_experiments = {name for name, table in tables.TABLES.items() if not table.asked}
    assert {name for name, _ in needed} == of_experiments - {"spectra", "references"}


# What is there is not computed again


def test_what_exists_is_not_trained_again(smoke, monkeypatch):
    smoke.level(0, 5, 3)
    monkeypatch.setattr("unmask.lab.train_all", lambda *_, **__: pytest.fail("trained again"))
    smoke.level(0, 5, 3)
    smoke.rewind_point(0, 5)


def test_seeds_levels_and_rewind_steps_extend_a_store(smoke, monkeypatch):
    trained, e = [], smoke.experiment.but(first_seed=50)  # seeds that no other test trains
    unmask.table("levels", e, smoke.store, 1)

    def counting(e, split, starts, *args, **kwargs):
        trained.extend(starts)
        return train(e, split, starts, *args, **kwargs)

    monkeypatch.setattr(training, "train", counting)
    unmask.table("levels", e.but(seeds=3, levels=4), smoke.store, 1)
    # a new seed: dense and 4 levels for each of 2 rewind steps; the old 2 seeds: one more level
    assert len(trained) == (1 + 2 * 4) + 2 * 2 * 1
    trained.clear()
    unmask.table("levels", e.but(rewind_steps=(0, 3, 5)), smoke.store, 1)
    # of both seeds: 3 levels from the new rewind step, and the dense run up to it
    assert len(trained) == 2 * (3 + 1)


def test_a_table_that_is_there_is_read_without_what_it_was_made_from(smoke, monkeypatch):
    before = unmask.table("levels", smoke.experiment, smoke.store, 1)
    read, whole = [], Store._read_whole
    monkeypatch.setattr(Store, "_read_whole", lambda *args: read.append(args[1]) or whole(*args))
    assert unmask.table("levels", smoke.experiment, smoke.store, 1).equals(before)
    assert read and all("/levels-" in name for name in read)


def test_damaged_entries_are_found_before_anything_is_built_on_them(smoke, tmp_path, capsys):
    store = Store(tmp_path / "damaged")
    before = unmask.table("levels", smoke.experiment, store, 1)
    ticket = store.root / (smoke.name(Place("imp", 0, 5, 1)) + ".safetensors")
    ticket.write_bytes(ticket.read_bytes()[:-1] + b"?")
    (part,) = store.root.glob("*/seed0/rewind00005/levels-*.csv.json")
    part.unlink()
    capsys.readouterr()
    assert unmask.table("levels", smoke.experiment, store, 1).equals(before)
    assert capsys.readouterr().err.count("computing it again") == 1
    assert all(store.damage(name) is None for name in store.names())


# Tables


def test_results_do_not_depend_on_the_callers_threads(smoke, tmp_path):
    torch.set_num_threads(4)
    other = Lab(smoke.experiment, Store(tmp_path / "threads"))
    assert same(other.level(0, 5, 1).state, smoke.level(0, 5, 1).state)
    tables.load_findings()
    parts = [tables.TABLES["segments"].read(lab, (0, 5)) for lab in (smoke, other)]
    assert parts[0].equals(parts[1]) and torch.get_num_threads() == 4


@of_cold
def test_two_cold_runs_with_one_and_two_jobs_give_byte_identical_tables(cold, store):
    unmask.measure("smoke", store=store, jobs=2)
    one, two = (
        {name: (each.root / name).read_bytes() for name in each.names()}
        for each in (cold.lab.store, store)
    )
    assert one.keys() == two.keys() and len(one) > 40
    assert [name for name in one if one[name] != two[name]] == []


@of_cold
def test_tables_have_a_row_for_every_case(cold):
    assert list(cold.tables) == tables.known_tables()
    rows = {name: len(table) for name, table in cold.tables.items()}
    seeds, chains_, pairs = 2, 2 * 2, 3
    assert rows == {
        "levels": chains_ * 4,
        "references": seeds * 2,
        "layers": chains_ * 4 * 10,
        "controls": seeds * 1 * 5,
        "segments": chains_ * pairs * (3 + 3),
        "pairs": chains_ * 6,
        "subspaces": chains_ * 2 * 3,
        "perturbations": chains_ * 2 * (3 + 2),
        "spectra": rows["spectra"],
        "curvatures": 2 * (3 + 1),
        # heights, masks, readings, with and without the gradient: by spectrum, and exactly
        "predictions": 3 * 2 * 3 * ((2 * 3 + 1) + (2 * 1 + 1)),
        "displacements": seeds * (1 + 8) * 6,
        "prunings": rows["prunings"],
        "magnitudes": seeds * 1 * 4 * 61,
        "gaps": chains_ * pairs * 4,
        "refill": seeds * 3 * 1 * 23,
        "next_cuts": seeds * (2 + 3 + 3),
        "retraining_methods": seeds * 1 * 3,
        "landscape": 4 * (3 + 3 + 2 + 49),
    }
    assert rows["spectra"] > 4 * 50 and rows["prunings"] > seeds * 4 * 2 * 3


def test_the_level_table_says_what_evaluation_says(smoke):
    table = unmask.table("levels", smoke.experiment, smoke.store, 1)
    row = table.set_index(["seed", "rewind_step", "level"]).loc[1, 5, 3]
    networks.load_state(smoke.network, smoke.level(1, 5, 3).state)
    assert row.test_error == evaluate(smoke.network, smoke.data.test).error
    assert row.survivors == 961 and row.density == 961 / 1876


def test_train_error_may_be_that_of_the_first_samples(smoke_store):
    some, keys = Lab(experiment("smoke", train_measured=50), smoke_store), ["seed", "rewind_step"]
    rows, everything = (
        unmask.table("levels", e, smoke_store, 1).set_index([*keys, "level"])
        for e in (some.experiment, experiment("smoke"))
    )
    assert (rows.test_error == everything.test_error).all()
    assert (rows.train_loss != everything.train_loss).all()
    networks.load_state(some.network, some.level(1, 5, 3).state)
    first = some.data.train.take(50)
    assert len(first.y) == 50
    assert rows.train_loss[1, 5, 3] == evaluate(some.network, first).loss


def test_stores_and_presets_may_be_given_by_path_and_name(smoke, tmp_path, monkeypatch):
    expected = unmask.table("levels", smoke.experiment, smoke.store, 1)
    root = smoke.store.root
    for chosen in (smoke.experiment, "smoke"):
        for store in (root, str(root)):
            assert unmask.table("levels", chosen, store=store, jobs=1).equals(expected)
    monkeypatch.setenv("UNMASK_STORE", str(root))
    assert unmask.table("levels", "smoke", jobs=1).equals(expected)
    with pytest.raises(UnmaskError, match="preset='smok': must be one of miniature, "):
        unmask.table("levels", "smok", root)
    with pytest.raises(UnmaskError, match="cannot be written"):
        (tmp_path / "file").write_text("")
        unmask.table("levels", "smoke", tmp_path / "file" / "store")


def test_unknown_table_is_refused(smoke):
    with pytest.raises(UnmaskError, match="table='nope': must be one of levels, references, lay"):
        unmask.table("nope", smoke.experiment, smoke.store)


def test_what_leaves_the_store_before_it_is_read_is_computed_again(smoke, tmp_path):
    """As another run may delete an entry after this one has seen that all is there."""
    store, e = Store(tmp_path / "store"), smoke.experiment.but(seeds=1, rewind_steps=[5], levels=1)
    found = unmask.measure(e, ["layers"], store, jobs=1)["layers"]
    (path,) = store.root.glob(f"{e.recipe}/**/layers*.csv")
    path.unlink()
    assert tables.read(tables.Shelf(e, store), "layers").equals(found) and path.exists()


def test_a_table_may_be_declared_anywhere(tiny, store):
    @tables.table(("seed", "rewind_step"), reads=("levels",))
    def means(lab, seed, rewind_step):
        ticket = lab.level(seed, rewind_step, lab.experiment.levels)
        weights = pruning.surviving(ticket.state, ticket.mask)
        return pd.DataFrame({"survivors": [len(weights)], "mean": [weights.mean()]})

    try:
        assert tables.known_tables()[-1] == "means"
        found = unmask.measure(tiny, ["means"], store, jobs=1)["means"]
        lab = Lab(tiny, store)
        assert list(found.columns) == ["seed", "rewind_step", "survivors", "mean"]
        assert found[["seed", "rewind_step"]].values.tolist() == [[0, 0], [0, 5], [1, 0], [1, 5]]
        assert (found.survivors == lab.survivors(tiny.levels)).all()
        weights = pruning.surviving(*lab.level(1, 5, 3)[:2])
        assert found["mean"].iloc[-1] == weights.mean()
        assert tables.complete(lab, ["means"]) == ["means"]
    finally:
        del tables.TABLES["means"]
    assert "means" not in tables.known_tables()


def test_a_ticket_that_leaves_computes_the_same(smoke, monkeypatch, tmp_path, capsys):
    """By what its card says, in plain PyTorch: to the bit."""
    lab, at = smoke, Place("imp", 1, 5, 2)
    ticket = lab.tickets([at])[0]
    monkeypatch.setenv("UNMASK_STORE", str(lab.store.root))
    place = ["--seed", "1", "--rewind-step", "5", "--level", "2"]
    assert main(["export", "smoke", *place, "--output", str(tmp_path / "out")]) == 0
    assert "(imp, seed 1, rewind step 5, level 2)" in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    error = lab.evaluate(ticket.state).error
    assert card.startswith(f"# {at}\n") and f"| test error | {error:.2%} |" in card
    assert f"| weights left | {lab.survivors(2):,} of 1,876 (64" in card
    found = {}
    monkeypatch.chdir(tmp_path / "out")
    exec(card.partition("```python\n")[2].partition("```")[0], found)
    networks.load_state(lab.network, ticket.state)
    x, _ = next(lab.data.test.chunks(100))
    assert torch.equal(found["network"].eval()(x), lab.network.eval()(x))
    for name, kept in ticket.mask.items():
        pruned = found["network"].get_submodule(name.removesuffix(".weight"))
        assert torch.equal(pruned.parametrizations.weight[0].mask, kept)
    assert main(["export", "smoke", "--seed", "7"]) == 2
    assert "seed 7, rewind step 5, level 3: is not in" in capsys.readouterr().err
    # what is trained from the last rewind step only, is where that is the only one
    arguments = "--kind", "random", "--rewind-step", "0", "--level", "2"
    assert main(["export", "smoke", *arguments]) == 2
    said = "`unmask run smoke --set rewind_steps=0` trains it"
    assert said in capsys.readouterr().err


def test_what_there_is_to_do_is_told_beforehand(smoke):
    tables.load_findings()
    parents = tables.graph(smoke.experiment, ["levels", "pairs"])
    assert tables.estimate(smoke, parents, 2) == tables.estimate(smoke, parents, 2, least=1) == ""
    said = tables.estimate(smoke, parents, 2, least=1, brief=0)  # it takes seconds
    # for each of two seeds the dense run of 40 steps, and three levels from steps 0 and 5
    counts = "14 networks to train and 8 parts of tables to measure, 530 training steps"
    assert 2 * (40 + 3 * (40 + 35)) == 530 and said.startswith(f"{counts}: about 0.0 hours with 2 ")
    assert 0 < float(said.partition("time, at ")[2].partition(" ms a step")[0]) < 1000


def test_a_seed_that_diverges_takes_no_other_along(store):
    """At this rate some seeds diverge and others do not."""
    lab = Lab(experiment("smoke", lr=100.0, seeds=6), store)
    with pytest.raises(UnmaskError, match="training diverged: .* with lr=100.0 .seed ") as caught:
        lab.tickets([dense(seed) for seed in range(6)])
    stored = {seed for seed in range(6) if lab.name(dense(seed)) + ".safetensors" in store}
    lost = {seed for seed in range(6) if f"seed {seed}, dense" in str(caught.value)}
    assert stored and lost and stored | lost == set(range(6)) and not stored & lost
    assert not [name for name in store.names() if "unfinished" in name]


def test_a_chain_that_diverges_takes_no_other_along(smoke, monkeypatch, tmp_path):
    """Seed 1 at level 2: seed 0 goes on to the end, in the same task, and so do its controls."""
    e = smoke.experiment.but(levels=3, control_every=3)
    train_all = training.train_all

    def planted(*arguments, **options):
        found = train_all(*arguments, **options)
        for start, (states, _) in zip(arguments[2], found):
            if start.order == (1, "order", 2):
                states[e.steps] = {name: t * float("nan") for name, t in states[e.steps].items()}
        return found

    monkeypatch.setattr("unmask.lab.train_all", planted)
    store = Store(tmp_path)
    said = r"^training diverged: .*\(imp, seed 1, rewind step 5, level 2\).* not tried; what is"
    with pytest.raises(UnmaskError, match=said):
        unmask.measure(e, ["levels", "controls"], store, jobs=1)
    stored = [name for name in store.names() if name.endswith(".csv")]
    assert {name.split("/")[1] for name in stored} == {"seed0"}
    assert {name.rpartition("/")[2].partition("-")[0] for name in stored} == {"levels", "controls"}
    theirs = {name.partition(".")[0][-12:] for name in store.names() if "seed1/" in name}
    assert "/imp/level01" in theirs and not theirs & {"/imp/level02", "/imp/level03"}


def test_a_control_that_diverges_is_a_result(smoke, monkeypatch, store):
    """It is stored, errs as by chance, and leaves the network that it is compared with alone."""
    lab, at = Lab(smoke.experiment, store), Place("random", 0, 5, 2)
    before = lab.level(0, 5, 1).state
    nothing = {name: tensor * float("nan") for name, tensor in before.items()}
    ended = training.Trained({smoke.experiment.steps: nothing}, {})
    monkeypatch.setattr("unmask.lab.train_all", lambda *_, **__: [ended])
    state = lab.tickets([at])[0].state
    path = lab.path(before, state)
    assert path.test_error.iloc[0] == lab.evaluate(before).error
    assert path.test_error.iloc[-1] == pytest.approx(0.9, abs=0.05)
    with pytest.raises(UnmaskError, match="training diverged"):
        lab.tickets([Place("imp", 0, 5, 3)])
