"""The store: whole or absent, damage found and repaired, and one clear line when it cannot be
written."""

import errno
import json
import os

import pandas as pd
import pytest
import torch

from unmask import store as module
from unmask.cli import main
from unmask.errors import UnmaskError


def compute_counted(calls, value):
    def compute():
        calls.append(1)
        return value

    return compute


def files(store):
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_tensors_come_back_as_they_were(store):
    state = {"w": torch.randn(3, 2), "m": torch.tensor([True, False])}
    assert store.tensors("a/b") is None
    store.put_tensors("a/b", state, 1.5)
    got = store.tensors("a/b")
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)
    assert store.provenance("a/b.safetensors")["seconds"] == 1.5


def test_a_second_read_computes_nothing(store):
    calls = []
    for _ in range(2):
        store.table("t", compute_counted(calls, pd.DataFrame({"x": [1]})))
    assert len(calls) == 1


def test_others_may_read_what_they_may_read_of_other_files(store):
    (store.root / "plain").write_text("")
    store.put_tensors("shared", {"x": torch.zeros(2)})
    usual = (store.root / "plain").stat().st_mode
    assert {path.stat().st_mode for path in store.root.glob("shared*")} == {usual}


def test_tables_come_back_to_the_bit(store):
    numbers = {"x": [1 / 3, 1e-300, 0.1 + 0.2], "n": [1, 2, 3]}
    table = pd.DataFrame(numbers | {"s": ["a", "b, c", "d"]})
    for _ in range(2):
        pd.testing.assert_frame_equal(store.table("t", lambda: table), table, check_exact=True)


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "stored were"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "content was altered"),
        (lambda path: path.unlink(), ".csv file missing"),
        (lambda path: path.with_name(path.name + ".json").write_text("{"), ".json cannot be read"),
        (lambda path: path.with_name(path.name + ".json").write_text("{}"), "stored were None"),
        (lambda path: path.with_name(path.name + ".json").write_text("[]"), "not a record"),
    ],
)
def test_a_damaged_entry_is_reported_and_computed_again(store, harm, said, capsys, monkeypatch):
    calls, table = [], pd.DataFrame({"x": [1, 2]})
    store.table("t", compute_counted(calls, table))
    harm(store.root / "t.csv")
    assert said in store.damage("t.csv")
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    assert main(["store", "verify"]) == 1 and "damaged  t.csv" in capsys.readouterr().out
    pd.testing.assert_frame_equal(store.table("t", compute_counted(calls, table)), table)
    assert len(calls) == 2 and "computing it again" in capsys.readouterr().err
    assert store.damage("t.csv") is None and main(["store", "verify"]) == 0


def test_data_without_its_checksum_counts_as_absent(store):
    (store.root / "t.csv").write_text("x\n7\n")
    assert store.table("t", lambda: pd.DataFrame({"x": [1]})).x.tolist() == [1]


def test_a_full_disk_leaves_nothing_and_is_said_in_one_line(store, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UnmaskError, match="cannot write .*: No space left on device"):
        store.put_tensors("a/b", {"w": torch.zeros(2)})
    assert files(store) == []


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "file" / "store"))
    assert main(["run", "smoke"]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_an_interrupted_computation_leaves_nothing(store):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.table("a", interrupted)
    assert list(store.names()) == [] and files(store) == []


def test_listing_names_every_entry_with_its_provenance(store, monkeypatch, capsys):
    store.put_tensors("b", {"w": torch.zeros(2)})
    store.table("a", lambda: pd.DataFrame({"x": [1]}))
    assert list(store.names()) == ["a.csv", "b.safetensors"]
    about = json.loads((store.root / "a.csv.json").read_text())
    assert {"sha256", "bytes", "seconds", "date", "torch", "python"} <= set(about)
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    assert main(["store", "ls"]) == 0 and "a.csv" in capsys.readouterr().out
