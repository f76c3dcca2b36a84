"""The store: whole or absent, damage found and repaired, and one clear line when it cannot be
written."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

import unmask
from unmask import store as module
from unmask import tables
from unmask.chains import Place
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.store import Store


def compute_counted(calls, value):
    def compute():
        calls.append(1)
        return value

    return compute


def files(store):
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_tensors_come_back_as_they_were(anywhere):
    state = {"w": torch.randn(3, 2), "m": torch.tensor([True, False])}
    assert anywhere.tensors("a/b") is None
    anywhere.put_tensors("a/b", state, 1.5)
    got = anywhere.tensors("a/b")
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)
    assert anywhere.provenance("a/b.safetensors")["seconds"] == 1.5


def test_a_second_read_computes_nothing(anywhere):
    calls = []
    for _ in range(2):
        anywhere.table("t", compute_counted(calls, pd.DataFrame({"x": [1]})))
    assert len(calls) == 1


def test_others_may_read_what_they_may_read_of_other_files(store):
    store.prepare()
    (store.root / "plain").write_text("")
    store.put_tensors("shared", {"x": torch.zeros(2)})
    usual = (store.root / "plain").stat().st_mode
    assert {path.stat().st_mode for path in store.root.glob("shared*")} == {usual}


def test_tables_come_back_to_the_bit(anywhere):
    numbers = {"x": [1 / 3, 1e-300, 0.1 + 0.2], "n": [1, 2, 3]}
    table = pd.DataFrame(numbers | {"s": ["a", "b, c", "d"]})
    for _ in range(2):
        pd.testing.assert_frame_equal(anywhere.table("t", lambda: table), table, check_exact=True)


def test_data_without_its_checksum_counts_as_absent(anywhere):
    anywhere.prepare()
    (anywhere.root / "t.csv").write_text("x\n7\n")
    assert anywhere.table("t", lambda: pd.DataFrame({"x": [1]})).x.tolist() == [1]


def test_a_full_disk_leaves_nothing_and_is_said_in_one_line(store, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UnmaskError, match="cannot be written: No space left on device"):
        store.put_tensors("a/b", {"w": torch.zeros(2)})
    assert files(store) == []


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "file" / "store"))
    assert main(["run", "smoke"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_interrupted_computation_leaves_nothing(anywhere):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        anywhere.table("a", interrupted)
    assert list(anywhere.names()) == [] and files(anywhere) == []


def test_listing_names_every_entry_with_its_provenance(anywhere, monkeypatch, capsys):
    anywhere.put_tensors("b", {"w": torch.zeros(2)})
    anywhere.table("a", lambda: pd.DataFrame({"x": [1]}))
    assert list(anywhere.names()) == ["a.csv", "b.safetensors"]
    about = json.loads((anywhere.root / "a.csv.json").read_text())
    assert {"sha256", "bytes", "seconds", "date", "torch", "python"} <= set(about)
    monkeypatch.setenv("UNMASK_STORE", str(anywhere.root))
    assert main(["store", "ls"]) == 0 and "a.csv" in capsys.readouterr().out


def record_of(store, name, data):
    """Put these bytes into an entry, with a right checksum."""
    record = store.root / (name + ".json")
    known = json.loads(record.read_text())
    known |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (store.root / name).write_bytes(data)
    record.write_text(json.dumps(known))


def tensors_of(harm):
    """A ticket's bytes after something was done to its tensors."""

    def bytes_of(data):
        tensors = safetensors.torch.load(data)
        harm(tensors)
        return safetensors.torch.save(tensors)

    return bytes_of


def header(data):
    size = int.from_bytes(data[:8], "little")
    return data[:8] + data[8 : 8 + size].replace(b'"shape":[', b'"shape":[9', 1) + data[8 + size :]


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: pickle.dumps({"a": 1}),
        lambda data: b"",
        lambda data: (2**63).to_bytes(8, "little") + data[8:],
        header,
        tensors_of(dict.clear),
        tensors_of(lambda t: t.update(more=torch.zeros(1))),
        tensors_of(lambda t: t.update({"stem.weight": t["stem.weight"][:2].contiguous()})),
        tensors_of(lambda t: t.update({"stem.weight": t["stem.weight"].half()})),
        tensors_of(lambda t: t.update({"mask:stem.weight": t["stem.weight"] + 1})),
        tensors_of(lambda t: t.pop("mask:stem.weight")),
    ],
)
def test_a_whole_entry_that_is_no_such_network_is_computed_again(tiny, store, harm, capsys):
    lab, at = Lab(tiny.but(seeds=1, levels=1), store), Place("imp", 0, 5, 1)
    before = lab.tickets([at])[0]
    name = lab.name(at) + ".safetensors"
    record_of(store, name, harm((store.root / name).read_bytes()))
    capsys.readouterr()
    again = lab.tickets([at])[0]
    assert all(torch.equal(again.state[name], before.state[name]) for name in before.state)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{name} is damaged (" in said


def test_a_whole_entry_that_is_no_table_is_computed_again(anywhere, capsys):
    for data in (pickle.dumps(3), b"", b'x\n"unfinished'):
        anywhere.table("t", lambda: pd.DataFrame({"x": [1]}))
        record_of(anywhere, "t.csv", data)
        assert anywhere.table("t", lambda: pd.DataFrame({"x": [1]})).x.tolist() == [1]
        assert "t.csv is damaged (no table: " in capsys.readouterr().err


def test_what_dead_writers_left_is_swept_and_what_the_living_write_is_not(store):
    (store.root / "seed0").mkdir(parents=True)
    old, new = (store.root / f"seed0/.unmask-{name}.partial" for name in ("old", "new"))
    for path in old, new:
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    store.prepare()
    assert not old.exists() and new.exists()


def test_trainings_that_nobody_resumed_are_swept_and_none_on_its_way_is_damage(
    store, monkeypatch, capsys
):
    store.put_tensors("recipe/unfinished/one-a", {"x": torch.zeros(1)})
    store.put_tensors("recipe/unfinished/two-a", {"x": torch.zeros(1)})
    for file in (store.root / "recipe/unfinished").glob("one-a*"):
        os.utime(file, (time.time() - 31 * 86_400,) * 2)
    store.prepare()
    assert store.names() == ["recipe/unfinished/two-a.safetensors"]
    (store.root / "recipe/unfinished/two-a.safetensors").write_bytes(b"being written")
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    assert main(["store", "verify"]) == 0 and "0 damaged" in capsys.readouterr().out


def test_reading_asks_for_no_writing(store, monkeypatch, capsys):
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    for action in ("ls", "verify"):
        assert main(["store", action]) == 2
        assert "there is no store" in capsys.readouterr().err and not store.root.exists()
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("UNMASK_STORE", __file__)
            assert main(["store", action]) == 2
        assert "test_store.py': there is no store" in capsys.readouterr().err
    e = experiment("smoke", seeds=1, levels=2, control_every=1)
    unmask.table("levels", e, store, jobs=1)
    monkeypatch.setattr(Store, "prepare", lambda _: pytest.fail("asked to write"))
    monkeypatch.setattr(module, "write_atomically", lambda *_: pytest.fail("written"))
    unmask.table("levels", e, store, jobs=1)
    assert main(["store", "verify"]) == 0


def test_strangers_files_are_passed_over_links_followed_and_what_cannot_be_read_is_counted(
    store, monkeypatch, capsys, tmp_path
):
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.table("t", lambda: pd.DataFrame({"x": [1]}))
    store.table("a", lambda: pd.DataFrame({"x": [1]}))
    (store.root / "notes.json").write_text("{}")
    (store.root / "linked").symlink_to(elsewhere.root)
    assert list(store.names()) == ["a.csv", "linked/t.csv"]

    def walk(root, onerror, followlinks):
        onerror(PermissionError(errno.EACCES, os.strerror(errno.EACCES), f"{root}/seed1"))
        return iter(())

    monkeypatch.setattr(module.os, "walk", walk)
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    assert main(["store", "verify"]) == 1
    assert "cannot be read  " in (said := capsys.readouterr().out) and "seed1: Permission" in said


def test_output_that_nobody_takes_is_no_traceback(store):
    store.table("ü", lambda: pd.DataFrame({"x": [1]}))
    command = f"{sys.executable} -m unmask store ls"
    known = os.environ | {"UNMASK_STORE": str(store.root)}
    for end, environment, status, said in (
        ("> /dev/full", {}, 2, "unmask: error: output: No space left on device\n"),
        ("| head -0", {}, 0, ""),
        ("", {"PYTHONIOENCODING": "ascii"}, 0, ""),
    ):
        options = dict(shell=True, text=True, env=known | environment, stderr=subprocess.PIPE)
        found = subprocess.run(f"{command} {end}", **options)
        assert (found.returncode, found.stderr) == (status, said), end


RUN = ["-m", "unmask", "run", "smoke", "--tables", "levels", "--jobs", "2"]
RUN += ["--set", "steps=800", "--set", "seeds=4"]
BUILD = [str(Path(__file__).parents[1] / "book/build.py")]
KILLS = [(RUN, kill) for kill in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)]


@pytest.mark.parametrize("command, kill", [*KILLS, (BUILD, signal.SIGTERM)])
def test_whoever_ends_it_no_process_stays_and_it_goes_on_from_there(tmp_path, command, kill):
    known = os.environ | {"UNMASK_STORE": str(tmp_path), "MARK_OF_TEST": str(tmp_path)}
    # which whatever a shell runs in the background, and this may be, is told to ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, *command]
    process = subprocess.Popen(command, env=known, stderr=subprocess.PIPE, text=True)
    while not any(tmp_path.rglob("dense*.json")):  # in the middle of its work
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(kill)
    _, said = process.communicate(timeout=120)
    if kill != signal.SIGKILL:
        end = "interrupted; what was finished is in the store, and the same command goes on from "
        status = 143 if command[1:] == BUILD else 130
        assert process.returncode == status and f"unmask: {end}there" in said

    def left():
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"MARK_OF_TEST={tmp_path}".encode() in (folder / "environ").read_bytes():
                    yield folder.name

    ended = time.monotonic()
    while list(left()) and time.monotonic() < ended + 10:
        time.sleep(0.1)
    assert list(left()) == []


def test_a_store_that_goes_away_is_said(store, monkeypatch, capsys):
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    compute = tables.compute

    def and_removed(*arguments):
        compute(*arguments)
        shutil.rmtree(store.root)

    monkeypatch.setattr(tables, "compute", and_removed)
    assert main(["run", "smoke", "--set", "seeds=1", "--tables", "levels", "--jobs", "1"]) == 2
    assert "levels is not there: the folder was changed while this ran" in capsys.readouterr().err
