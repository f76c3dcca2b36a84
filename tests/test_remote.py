"""Stores at URLs: shared by several processes, and one clear line for what goes wrong on the way.
What an entry is, in a folder or at a URL, is in `test_store.py`."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch

import unmask
from unmask import data, parallel, remote
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.store import Store, default_root

CHANGES = dict(steps=12, train_samples=100, test_samples=50, seeds=1, levels=1)


def contents(store):
    return {name: (store.root / name).read_bytes() for name in store.names()}


def ones():
    return pd.DataFrame({"x": [1]})


# Damaged


def emptied(path, other):
    path.write_bytes(b"")


def flipped(path, other):
    found = path.read_bytes()
    path.write_bytes(bytes([found[0] ^ 1]) + found[1:])


def cut(path, other):
    path.write_bytes(path.read_bytes()[:-1])


def gone(path, other):
    remote.remove(path)


def swapped(path, other):
    for one, two in ((path, other), (record(path), record(other))):
        one.write_bytes(two.read_bytes())


def record(path):
    return path.with_name(path.name + ".json")


def of_record(harm):
    return lambda path, other: harm(record(path), other)


@pytest.mark.parametrize(
    "harm, said",
    [
        (emptied, "0 bytes, stored were"),
        (flipped, "its content was altered"),
        (gone, ".csv file missing"),
        (swapped, "it is that of other.csv"),
        (of_record(cut), "its .json cannot be read"),
    ],
)
def test_damage_is_said_once_and_repaired_wherever_the_store_is(
    anywhere, harm, said, monkeypatch, capsys
):
    for name, value in (("t", 1), ("other", 2)):
        anywhere.table(name, lambda: pd.DataFrame({"x": [value]}))  # noqa: B023
    harm(anywhere.root / "t.csv", anywhere.root / "other.csv")
    assert said in anywhere.damage("t.csv")
    monkeypatch.setenv("UNMASK_STORE", str(anywhere.root))
    assert main(["store", "verify"]) == 1 and "damaged  t.csv" in capsys.readouterr().out
    for _ in range(2):
        assert anywhere.table("t", ones).x.tolist() == [1]
    assert capsys.readouterr().err.count("computing it again") == 1
    assert main(["store", "verify"]) == 0


# Shared


def test_what_one_claims_no_other_does_until_it_is_given_up(anywhere):
    other = Store(str(anywhere.root))
    anywhere.prepare()
    for _ in range(2):
        with anywhere.claimed(["r/a", "r/b"]) as mine, other.claimed(["r/b", "r/c"]) as others:
            assert (mine, others) == ({"r/a", "r/b"}, {"r/c"})
    assert list(anywhere.names()) == []


def test_of_many_who_claim_at_once_one_does(bucket):
    stores = [Store(f"{bucket.url}/crowd") for _ in range(8)]

    def held(store):
        return stack.enter_context(store.claimed(["a"]))

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        assert sum(map(len, pool.map(held, stores))) == 1


def test_a_claim_is_renewed_while_its_holder_lives(bucket, monkeypatch):
    monkeypatch.setattr(remote, "BEAT", 0.01)
    store = Store(f"{bucket.url}/renewed")
    with store.claimed(["a"]):
        (claim,) = (bucket.folder / "renewed/claims/a.claims").iterdir()
        began, until = float(claim.read_text()), time.monotonic() + 60
        while float(claim.read_text() or 0) <= began:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not claim.exists()


HOLDER = """
import sys, time
from unmask.store import Store
with Store(sys.argv[1]).claimed(["a"]) as held:
    print(*held, flush=True)
    time.sleep(600)
"""


def test_the_claim_of_one_that_is_killed_is_taken_over_by_one(bucket, monkeypatch):
    store = Store(f"{bucket.url}/killed")
    command = [sys.executable, "-c", HOLDER, str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "a\n"
        with store.claimed(["a"]) as held:
            assert held == set()
        holder.send_signal(signal.SIGKILL)
    monkeypatch.setattr(remote, "DEAD", 0)  # a minute later
    with store.claimed(["a"]) as held:
        assert held == {"a"}
        monkeypatch.undo()
        with Store(str(store.root)).claimed(["a"]) as others:
            assert others == set()
    assert remote.files(store.root) == []


def test_claims_that_nobody_took_over_are_swept_and_those_of_the_living_are_not(bucket):
    store = Store(f"{bucket.url}/swept")
    (store.root / "claims/r/a.claims/x").write_bytes(b"0")
    (store.root / "claims/r/lock").write_bytes(b"")  # of a folder that was copied there
    with store.claimed(["r/b"]):
        Store(str(store.root)).prepare()
        known = remote.files(store.root)
    assert known == ["claims/r/b.claims/x", "claims/r/lock", "writable"]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The entries of a small experiment, computed in a folder by one process."""
    store = Store(tmp_path_factory.mktemp("serial"))
    unmask.measure(experiment("smoke", **CHANGES), ["levels", "segments"], store, jobs=1)
    return contents(store)


def command_of(tables="levels,segments"):
    changes = (f"--set={name}={value}" for name, value in CHANGES.items())
    return ["run", "smoke", *changes, "--tables", tables, "--jobs", "1"]


def puts(bucket, store):
    """What was put as whole entries, but for data, which everyone may make."""
    start, end = f"/bucket/{store.root.name}/", ".json"
    paths = [path for command, path in bucket.asked if command == "PUT" and path.endswith(end)]
    names = [path.removeprefix(start).removesuffix(end) for path in paths]
    return [name for name in names if not name.startswith("data/") and "unfinished" not in name]


def test_two_runs_share_a_bucket_and_leave_there_what_one_leaves_in_a_folder(bucket, serial):
    store = Store(f"{bucket.url}/shared")
    known = os.environ | {"UNMASK_STORE": str(store.root)}
    command = [sys.executable, "-m", "unmask", *command_of()]
    options = dict(env=known, stderr=subprocess.PIPE, text=True)
    runs = [subprocess.Popen(command, **options) for _ in range(2)]
    said = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert contents(store) == serial
    made = puts(bucket, store)
    assert sorted(made) == sorted(set(made)) == [n for n in serial if not n.startswith("data/")]
    assert not [name for name in remote.files(store.root) if name.startswith("claims/")]


def test_others_do_not_see_what_is_in_the_memory_of_this_process(tmp_path):
    store = Store(f"memory://{tmp_path.name}")
    said = f"^[^ ]+ does not see {store.root}, which all have to$"
    with pytest.raises(UnmaskError, match=said):
        unmask.measure(experiment("smoke", **CHANGES), ["levels"], store, jobs=2)


# Lost


@pytest.mark.parametrize("ending", [".csv", ".csv.json"])
def test_what_is_lost_on_the_way_there_is_not_there(bucket, ending):
    store = Store(f"{bucket.url}/lost{len(ending)}")
    bucket.trouble = lambda command, path: "lost" if path.endswith(f"/t{ending}") else None
    with pytest.raises(UnmaskError, match="^store='s3://bucket/lost[^\n]*: cannot be [^\n]*$"):
        store._put("t.csv", b"x\n1\n", 0.0)
    bucket.reset()
    assert "t.csv" not in store and list(store.names()) == []
    assert store.table("t", ones).x.tolist() == [1]


def test_what_is_lost_on_the_way_back_is_no_damage(bucket, capsys):
    store = Store(f"{bucket.url}/back")
    store.put_tensors("t", {"x": torch.ones(3)})
    before = contents(store)
    for lost in (("HEAD", ".json"), ("GET", ".json"), ("GET", ".safetensors")):
        bucket.trouble = lambda *asked, lost=lost: (
            "lost" * all(map(str.endswith, asked, lost)) or None
        )
        for read in (store.tensors, lambda name: store.damage(f"{name}.safetensors")):
            with pytest.raises(UnmaskError, match="^store='s3://.*: cannot be read: "):
                read("t")
    bucket.trouble = lambda command, path: "lost"
    with pytest.raises(UnmaskError, match="^store='s3://.*: cannot be read: "):
        store.names()
    bucket.reset()
    assert contents(store) == before and capsys.readouterr().err == ""


def test_a_run_that_loses_its_store_again_and_again_ends_as_if_nothing_had_been(
    bucket, serial, monkeypatch, capsys
):
    store, there = Store(f"{bucket.url}/flaky"), set()
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    for name, seconds in (("BEAT", 1), ("DEAD", 5)):  # a claim that could not be given up
        monkeypatch.setattr(remote, name, seconds)
    for most in (40, 120, 10_000):  # requests, before all others are lost half-way; it needs 240
        bucket.reset()
        bucket.trouble = lambda *_: "lost" if len(bucket.asked) > most else None  # noqa: B023
        status, last = main(command_of()), capsys.readouterr().err.splitlines()[-1]
        made = puts(bucket, store)
        bucket.reset()
        assert len(made) == len(set(made)) and there.isdisjoint(made)
        there = {name for name in store.names() if not name.startswith("data/")}
        lost = status == 2 and last.startswith("unmask: error: store='s3://bucket/flaky")
        assert lost if most < 10_000 else status == 0, last
    assert contents(store) == serial


# Refused


def test_what_is_no_store_is_said_in_one_line(bucket, monkeypatch, tmp_path, capsys):
    def said(url, *command):
        monkeypatch.setenv("UNMASK_STORE", url)
        assert main(list(command) or ["run", "smoke", "--tables", "levels", "--jobs", "1"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert url in line
        return line

    assert "Unsupported filesystem: 'foo'" in said("foo://there")
    for nowhere in ("s3://", "s3:///", "://"):
        assert "names no bucket or folder" in said(nowhere)
    assert "a URL has two slashes after its colon" in said(f"s3:{tmp_path}")
    for scheme, package in (("gs", "gcsfs"), ("sftp", "paramiko")):
        monkeypatch.setitem(sys.modules, package, None)
        assert package in said(f"{scheme}://there/store")
    monkeypatch.setitem(sys.modules, "upath", None)
    assert "pip install -e '.[remote]'" in said("s3://bucket/x")
    monkeypatch.delitem(sys.modules, "upath")
    assert "bucket does not exist" in said("s3://elsewhere/store")
    assert "there is no store" in said("s3://elsewhere/store", "store", "ls")
    assert "there is no store" in said("s3://bucket/none", "store", "verify")
    bucket.trouble = lambda command, path: "denied" if command == "PUT" else None
    assert "cannot be written: Access Denied" in said("s3://bucket/readonly")
    bucket.trouble = lambda command, path: "denied"
    assert "cannot be read: " in said("s3://bucket/secret", "store", "ls")


def test_no_credentials_are_said_in_one_line(bucket, tmp_path):
    known = {name: value for name, value in os.environ.items() if "ACCESS_KEY" not in name}
    known |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    code = "from unmask.store import Store; Store('s3://bucket/x').prepare()"
    run = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True)
    assert run.stderr.splitlines()[-1].endswith("cannot be written: Unable to locate credentials")


def test_reading_asks_for_no_writing_there(bucket, monkeypatch, capsys):
    store, e = Store(f"{bucket.url}/published"), experiment("smoke", **CHANGES)
    before = unmask.table("levels", e, store, jobs=1)
    bucket.trouble = lambda command, path: None if command in ("GET", "HEAD") else "denied"
    pd.testing.assert_frame_equal(unmask.table("levels", e, store, jobs=1), before)
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    assert main(["store", "verify"]) == 0


def test_a_url_of_a_folder_is_that_folder_and_data_stay_on_this_machine(tmp_path, monkeypatch):
    assert Store(f"file://{tmp_path}/store").root == tmp_path / "store"
    monkeypatch.setenv("UNMASK_STORE", f"file://{tmp_path}/store")
    monkeypatch.delenv("UNMASK_DATA", raising=False)
    assert Store().root == tmp_path / "store" and data.root() == tmp_path / "unmask-data"
    monkeypatch.delenv("UNMASK_STORE")
    usual = default_root()
    for url in ("s3://bucket/store", "memory://x"):
        monkeypatch.setenv("UNMASK_STORE", url)
        monkeypatch.delenv("UNMASK_DATA", raising=False)
        assert data.root() == usual.parent / "unmask-data" and isinstance(usual, Path)
        assert str(Store().root) == url
        assert parallel.where_of(Lab(experiment("smoke"), Store()))[2] == url
