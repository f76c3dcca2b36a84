"""It survives: runs that are killed at any moment and started again, and stores in which anything
may have happened to any file."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import safetensors.torch
import torch

import unmask
from unmask import store as module
from unmask import tables
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.store import Store

NAMES = ["levels", "segments", "controls"]
CHANGES = dict(steps=24, train_samples=200, test_samples=100, seeds=1, levels=2, control_every=1)

# Killed


def run_until(root, kind, moment, counted=None):
    """In a process group of its own: a run that is killed at a moment of a kind, or a whole one."""
    os.setpgrp()
    seen = Counter()

    def watch(frame, event, called):
        if event == "c_call" and (called is os.fsync or called is os.replace):
            now = "writing"  # a file is there under another name
        elif event != "call" or not (now := MOMENTS.get(frame.f_code.co_filename)):
            return
        seen[now] += 1
        if now == kind and seen[now] == moment:
            os.killpg(0, signal.SIGKILL)

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.setprofile(watch)
    unmask.measure(experiment("smoke", **CHANGES), NAMES, root, jobs=1)
    sys.setprofile(None)
    if counted:
        counted.put(seen)


# Of a profiler's events, those at which a run may be killed: calls of these files' functions.
KINDS = {"training": "train.py", "pruning": "pruning.py", "measuring": "barriers.py"}
MOMENTS = {str(Path(unmask.__file__).with_name(file)): kind for kind, file in KINDS.items()}


def test_killed_at_twenty_moments_it_ends_as_if_nothing_had_been(tmp_path):
    fresh = multiprocessing.get_context("forkserver")  # of processes that have imported everything
    fresh.set_forkserver_preload(["unmask.lab", "unmask.findings", "filelock"])

    def run(*arguments):
        process = fresh.Process(target=run_until, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    counted = fresh.SimpleQueue()
    whole, store = Store(tmp_path / "whole"), Store(tmp_path / "killed0")
    assert run(whole.root, None, 0, counted) == 0
    calls, draws, finished = counted.get(), random.Random(16), {}
    e = experiment("smoke", **CHANGES)
    tables.load_findings()
    nodes = [tables.entry(Lab(e, store), node) for node in tables.graph(e, NAMES)]

    def goes_on(*moment):
        """Start it; nothing that was finished is done again. Its exit status."""
        status = run(store.root, *moment)
        now = {n: (store.root / f"{n}.json").stat().st_mtime_ns for n in nodes if n in store}
        assert now == now | finished
        finished.update(now)
        return status

    def ends():
        """As the run that nobody killed did, and without a temporary file."""
        for path in store.root.rglob("*.partial"):
            os.utime(path, (0, 0))  # a day later: see `Store.prepare`
        assert goes_on(None, 0) == 0
        store.prepare()
        assert contents(store) == contents(whole) and finished.keys() == set(nodes)
        assert [path for path in files(store) if path.suffix == ".partial"] == []

    killed, partial = Counter(), 0
    for kind in [*KINDS, "writing"] * 5:
        while goes_on(kind, draws.randint(1, calls[kind])) == 0:  # it was over before
            ends()
            store, finished = Store(tmp_path / f"killed{sum(killed.values())}-{kind}"), {}
        killed[kind] += 1
        partial += any(path.suffix == ".partial" for path in files(store))
    ends()
    assert set(killed.values()) == {5} and len(killed) == 4 and partial >= 5


TENSORS = ".safetensors"


def files(store):
    found = (path for path in store.root.rglob("*") if not path.is_dir())
    return [path for path in found if "claims" not in path.parts]


def contents(store):
    return {name: (store.root / name).read_bytes() for name in store.names()}


# Damaged. Each does something to a file; some need another of the same ending.


def flipped(path, draws, _):
    data = bytearray(path.read_bytes())
    data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)


def cut(path, draws, _):
    os.truncate(path, draws.randrange(path.stat().st_size))


def emptied(path, draws, _):
    os.truncate(path, 0)


def appended(path, draws, _):
    with open(path, "ab") as file:
        file.write(draws.randbytes(draws.randint(1, 2000)))


def swapped(path, draws, other):
    """With its record."""
    for one, two in ((data_of(path), data_of(other)), (record(path), record(other))):
        aside = one.with_name("aside")
        for source, target in ((one, aside), (two, one), (aside, two)):
            source.rename(target)


def exchanged(path, draws, other):
    """Without it."""
    path.write_bytes(other.read_bytes())


def gone(path, draws, _):
    path.unlink()


def folder(path, draws, _):
    path.unlink()
    path.mkdir()
    (path / "notes").write_text("of somebody")


def linked(path, draws, other):
    path.unlink()
    path.symlink_to(draws.choice([other, path, path.parent, "/dev/zero", "/nowhere"]))


def piped(path, draws, _):
    path.unlink()
    os.mkfifo(path)


def sparse(path, draws, _):
    os.truncate(path, 10**11)


ODD = [
    None,
    True,
    -1,
    0,
    2.5,
    10**30,
    10**400,
    1e300,
    "",
    "x" * 10_000,
    [],
    {},
    [[1]],
    "ünïcode",
    "\0",
]


def odd_value(path, draws, _):
    about = json.loads(record(path).read_text())
    about[draws.choice(sorted(about))] = draws.choice(ODD)
    record(path).write_text(json.dumps(about))


def odd_record(path, draws, _):
    texts = ["", "{", "[]", "7", "null", '"x"', "[" * 100_000, "{}" * 1000, '{"bytes": NaN}', "\0"]
    record(path).write_text(draws.choice(texts))


def no_key(path, draws, _):
    about = json.loads(record(path).read_text())
    del about[draws.choice(["sha256", "bytes", "seconds", "date"])]
    record(path).write_text(json.dumps(about))


def data_of(path):
    return path.with_suffix("") if path.suffix == ".json" else path


def record(path):
    return data_of(path).with_name(data_of(path).name + ".json")


def of_record(harm):
    return lambda path, draws, _: harm(record(path), draws, _)


HARMS = [flipped, cut, emptied, appended, swapped, exchanged, gone, folder, linked, piped, sparse]
HARMS += [odd_value, odd_record, no_key]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A small store with entries of every kind, and an experiment whose they are."""
    e = experiment("smoke", **CHANGES)
    store = Store(tmp_path_factory.mktemp("known"))
    unmask.measure(e, NAMES, store, jobs=1)
    store.put_tensors(f"{e.recipe}/unfinished/0123-a", {"step/": torch.tensor(3)})
    store.put_tensors(f"{e.recipe}/seed0/curvature-0123", {"gradient": torch.ones(9)})
    return e, store


def kind(path):
    """What is in it: files of the same kind are much alike."""
    name = path.name.partition(".")[0].rstrip("0123456789")
    return name.partition("-")[0], path.suffix


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_a_file_nothing_wrong_is_read(
    known, seed, tmp_path, capsys, monkeypatch
):
    """Any harm to files of every kind: it is noticed, or has changed nothing that is read."""
    original, before, cases = known[1], contents(known[1]), Counter()
    store, draws, kinds = Store(tmp_path / "harmed"), random.Random(seed), {}
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    for path in files(original):
        kinds.setdefault(kind(path), []).append(path.relative_to(original.root))
    assert len(kinds) == 2 * 9  # a record for each
    for (_, ending), harm in product(kinds, HARMS):
        path = draws.choice(kinds[_, ending])
        name = str(data_of(path))
        other = draws.choice([n for n in before if n != name and n[-4:] == name[-4:]])
        for each in (name, f"{name}.json", other, f"{other}.json"):
            (store.root / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(original.root / each, store.root / each)
        harm(store.root / path, draws, store.root / (other + ".json" * (ending == ".json")))
        cases[harm.__name__] += 1
        there = name in store
        assert main(["store", "ls"]) in (0, 1)
        whole = store.damage(name) is None
        capsys.readouterr()
        found = read(store, name)
        said = capsys.readouterr().err
        assert found == (before[name] if whole else None), (harm, path)
        assert said.count("\n") == (there and not whole), (harm, path)
        shutil.rmtree(store.root)
    assert 3 * cases.total() >= 500


def read(store, name):
    """The bytes of what is read as an entry, or None where it would be computed again."""
    stem, absent = name.rpartition(".")[0], UnmaskError("to be computed")
    if name.endswith(TENSORS):
        found = store.tensors(stem)
        return found and safetensors.torch.save(found)
    try:
        return module.csv_of(store.table(stem, Mock(side_effect=absent)))
    except UnmaskError as error:
        assert error is absent
        return None


@pytest.mark.parametrize(
    "harm, said",
    [
        (appended, "stored were"),
        (emptied, "0 bytes, stored were"),
        (flipped, "its content was altered"),
        (gone, ".csv file missing"),
        (swapped, "it is that of other.csv"),
        (folder, "not a file"),
        (piped, "not a file"),
        (sparse, "100000000000 bytes, stored were"),
        (of_record(emptied), "its .json cannot be read"),
        (of_record(folder), "not a file"),
        (of_record(sparse), "its .json cannot be read"),
        (no_key, "its .json is not a record: no "),
    ],
)
def test_damage_is_said_once_and_repaired(store, harm, said, monkeypatch, capsys):
    for name, value in (("t", 1), ("other", 2)):
        store.table(name, lambda: pd.DataFrame({"x": [value]}))  # noqa: B023
    harm(store.root / "t.csv", random.Random(0), store.root / "other.csv")
    assert said in store.damage("t.csv")
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    assert main(["store", "verify"]) == 1 and "damaged  t.csv" in capsys.readouterr().out
    compute = Mock(return_value=pd.DataFrame({"x": [1]}))
    for _ in range(2):
        assert store.table("t", compute).x.tolist() == [1]
    assert compute.call_count == 1
    assert (
        capsys.readouterr().err.count("computing it again") == 1 and store.damage("t.csv") is None
    )
    kept = list(store.root.rglob("notes"))  # what somebody put there is moved aside, not removed
    assert [path.parent.name.partition(".damaged-")[1] for path in kept] in ([], [".damaged-"])


def test_a_store_in_which_every_entry_was_harmed_is_repaired(known, tmp_path, capsys):
    e, original = known
    draws, store = random.Random(16), Store(tmp_path / "harmed")
    before = {name: data for name, data in contents(original).items() if "0123" not in name}
    shutil.copytree(original.root, store.root)
    for name in before:
        harm = draws.choice([harm for harm in HARMS if harm not in (swapped, exchanged, linked)])
        harm(store.root / name, draws, None)
    unmask.measure(e, NAMES, store, jobs=1)
    after = contents(store)
    assert {name: after[name] for name in before} == before
    assert "is damaged (" in capsys.readouterr().err
