"""Published results: the tables of an experiment with their provenance, in a folder that git
keeps."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from . import tables
from .errors import UnmaskError
from .experiments import PRESETS, Experiment, bad, experiment
from .own import foreign
from .remote import reaching
from .store import commit, csv_of, reading_csv, versions, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .lab import Lab

FOLDER = Path(__file__).resolve().parents[2] / "results"
COMPARED_WITH = {"levels", "references"}  # by their errors, all other tables are judged


def check_name(chosen: Experiment, name: str | None, folder: Path = FOLDER) -> str:
    """The name to publish under, by default the preset's.
    Raises UnmaskError: it is a preset's and the experiment is not that preset as it stands, or
    some of its seeds; or another experiment is published under it; or it is no plain name."""
    name = chosen.preset if name is None else name
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise UnmaskError(f"publish={name!r}: must be a name of small letters, digits and _")
    preset = PRESETS.get(name, chosen)
    if not (_same_but_seeds(preset, chosen) and set(chosen.all_seeds) <= set(preset.all_seeds)):
        said = "the experiment is not that preset as it stands; give it a name of its own"
        raise UnmaskError(f"publish={name!r}: {said}")
    if name in published_names(folder):
        known, _, about = published(name, folder)
        if about["recipe"] != chosen.recipe or not _same_but_seeds(known, chosen):
            said = f"{folder / name} has the tables of another experiment; delete it, or take "
            raise UnmaskError(f"publish={name!r}: {said}another name")
    return name


def _same_but_seeds(one: Experiment, other: Experiment) -> bool:
    return one.but(seeds=1, first_seed=0) == other.but(seeds=1, first_seed=0)


def publish(
    lab: Lab, name: str | None = None, folder: Path = FOLDER, wanted: Sequence[str] | None = None
) -> Path:
    """Write those of the `wanted` tables that are whole in the store to `folder/name`, with where
    they came from. What is there stays: other tables of the same seeds, and other seeds of the same
    tables. So results are published in instalments, as they are computed, where they are computed.
    Time and hardware are those of what the store still has.
    Raises UnmaskError: as `check_name`; nothing to publish, a folder that cannot be written or has
    another experiment's tables, or an instalment after which seeds would lack a table that all
    others are judged by."""
    chosen, store = lab.experiment, lab.store
    name = check_name(chosen, name, folder)
    target, known, there, instalments = folder / name, chosen, {}, []
    if name in published_names(folder):
        known, there, about = published(name, folder)
        instalments = about["instalments"]
    # What is there and in this store as well is written anew, by one program from one store.
    possible = set(tables.known_tables(asked=True))
    wanted = possible if wanted is None else {*wanted, *there} & possible
    seeds = sorted({*chosen.all_seeds, *known.all_seeds})
    whole = known.but(first_seed=seeds[0], seeds=1 + seeds[-1] - seeds[0])
    ours = sorted(table for table in wanted if _seeds_of(table, whole) & {*chosen.all_seeds})
    if not (names := tables.complete(lab, ours)):
        said = f"no table of the experiment is whole in {store.root}"
        raise UnmaskError(f"publish={name!r}: {said}")

    fresh, written = {table: tables.read(lab, table) for table in names}, {}
    for table in sorted({*fresh, *there} & possible):
        first, *other = (rows[table] for rows in (fresh, there) if table in rows)
        others = (rows[~rows.seed.isin(first.seed)] for rows in other)  # fresh rows replace old
        both = pd.concat([first, *others]).sort_values("seed", kind="stable")
        written[table] = both[both.seed.isin(_seeds_of(table, whole))]
    # what another table shows is said of the seeds that it has
    if lacking := _with_gaps(whole, written, written.keys() & COMPARED_WITH or written):
        said = f"with what {target} has, {', '.join(lacking)} would not have all of seeds "
        raise UnmaskError(f"publish={name!r}: {said}{seeds[0]} to {seeds[-1]}")

    this = {"tables": names, "first_seed": chosen.first_seed, "seeds": chosen.seeds}
    instalments = _remaining(instalments, this, written)
    later = (one["tables"] for one in (*instalments, this) if one["first_seed"] > seeds[0])
    later = possible.intersection(chain.from_iterable(later))
    if odd := sorted(table for table in later if "first_seed" in tables.TABLES[table].reads):
        said = f"{', '.join(odd)} depend on the first seed: run and publish first_seed={seeds[0]}, "
        raise UnmaskError(f"publish={name!r}: {said}seeds={whole.seeds}")
    # a recipe of a user's own files is that of the day
    about = {"experiment": dataclasses.asdict(whole), "identity": whole.id}
    about["recipe"] = whole.recipe
    about["instalments"] = [*instalments, this | _about(lab, names)]
    with reaching("publish", target):
        for table, values in written.items():
            write_atomically(target / f"{table}.csv", csv_of(values))
        text = json.dumps(about, indent=1) + "\n"
        write_atomically(target / "provenance.json", text.encode())
    return target


def _seeds_of(table: str, e: Experiment) -> set[int]:
    """Those that a whole table of an experiment has: all, or the first alone."""
    return {keys[0] for _, keys in tables.TABLES[table].parts(e)}


def _with_gaps(e: Experiment, found: dict[str, pd.DataFrame], names: Iterable[str]) -> list[str]:
    """Those of named tables, all of which are found, that lack some of an experiment's seeds."""
    return sorted(table for table in names if _seeds_of(table, e) - {*found[table].seed})


def _remaining(instalments: list[dict], fresh: dict, written: dict) -> list[dict]:
    """The instalments with what a fresh one has not replaced, and tables `written` have rows of."""
    remaining = []
    for one in instalments:
        here = _range(one)
        names = set(one["tables"]) - set(fresh["tables"] if {*here} <= {*_range(fresh)} else ())
        names -= {table for table, rows in written.items() if not rows.seed.isin(here).any()}
        if names:
            remaining.append(one | {"tables": sorted(names)})
    return remaining


def _range(instalment: dict) -> range:
    return range(instalment["first_seed"], instalment["first_seed"] + instalment["seeds"])


def _about(lab: Lab, names: Sequence[str]) -> dict:
    """Where tables come from: what the entries say that they were computed from."""
    needed = [tables.entry(lab, node) for node in tables.graph(lab.experiment, names)]
    entries = [lab.store.provenance(entry) for entry in needed if not lab.store.damage(entry)]
    days = sorted(entry["date"][:10] for entry in entries)

    def told(what: str, otherwise: str = "unknown") -> str:
        return ", ".join(sorted({entry.get(what, otherwise) for entry in entries}))

    return {
        "published from commit": commit(),
        "computed from commits": told("commit"),
        "computed": " to ".join(sorted({days[0], days[-1]})),
        "processor": told("processor"),
        "device": told("gpu", "cpu"),
        "core_seconds": round(sum(entry["seconds"] for entry in entries)),
        "entries": len(entries),
        "entries no longer in the store": len(needed) - len(entries),
        "versions": {what: told(what) for what in versions()},
    }


def published(name: str, folder: Path = FOLDER) -> tuple[Experiment, dict[str, pd.DataFrame], dict]:
    """The experiment, tables and provenance that `publish` wrote under a name.
    Raises UnmaskError: nothing is published under that name, or it cannot be read."""
    if name not in published_names(folder):
        known = ", ".join(published_names(folder)) or "nothing"
        raise UnmaskError(f"preset={name!r}: is not published; in {folder} there is {known}")
    about = provenance(name, folder)
    with foreign(f"{folder / name} cannot be read:"):
        e, found = experiment(**about["experiment"]), {}
        for path in sorted((folder / name).glob("*.csv")):
            rows = reading_csv(path)  # with more seeds where publishing them was interrupted
            seeds = (_range(one) for one in about["instalments"] if path.stem in one["tables"])
            rows = rows[rows.seed.isin(chain.from_iterable(seeds))]
            found[path.stem] = rows.reset_index(drop=True)
    return e, found, about


def provenance(name: str, folder: Path = FOLDER) -> dict:
    """What is published under a name, and where from: "experiment", its "identity" and "recipe",
    and "instalments", each with its tables, seeds, commit, dates, hardware and versions."""
    path = folder / name / "provenance.json"
    with foreign(f"{path} cannot be read:"):  # two instalments that git merged, say
        return json.loads(path.read_text())


def told(about: dict, what: str) -> str:
    """What all instalments of a provenance say of something."""
    return ", ".join(dict.fromkeys(one[what] for one in about["instalments"]))


def published_names(folder: Path = FOLDER) -> list[str]:
    """What is published: presets in their order, then other names."""
    found = sorted(path.parent.name for path in folder.glob("*/provenance.json"))
    presets = [name for name in PRESETS if name in found]
    return presets + [name for name in found if name not in presets]


class Shown(NamedTuple):
    """What a page shows: an experiment and its tables; if they are published (under a `name`), with
    what this machine computed `here` of the same, an experiment and its tables, or None."""

    experiment: Experiment
    tables: dict[str, pd.DataFrame]
    name: str = ""
    here: tuple[Experiment, dict[str, pd.DataFrame]] | None = None

    def forest(self, judge: Callable) -> Figure:
        """The verdicts of a finding, with the seeds of this machine beside the published ones."""
        from . import plots

        here = judge(self.here[1], self.here[0]) if self.here else None
        return plots.forest(judge(self.tables, self.experiment), here)

    def words(self) -> str:
        """Where the numbers of the page come from, in a sentence."""
        seeds = _seeds(self.experiment)
        if not self.name:
            return f"All numbers of this page were computed by whoever built it: {seeds}."
        about = provenance(self.name)
        where = f"on {told(about, 'processor')}, from commit {told(about, 'published from commit')}"
        words = f"Figures and intervals: published tables of {seeds}, computed {where}."
        if not self.here:
            return f"{words} Nothing was computed to build this page."
        here = f"{_seeds(self.here[0])}, at the levels of {self.here[0].preset}"
        return f"{words} Diamonds: {here}, computed by whoever built this page."


def _seeds(e: Experiment) -> str:
    return f"seeds {e.first_seed} to {e.all_seeds[-1]}" if e.seeds > 1 else f"seed {e.first_seed}"


# What has to be the same for one experiment's tables to be part of another's, and within it.
_SAME = ("levels", "earliest", "latest", "barrier_points", "epsilon", "lmc_threshold")
_SAME += ("higher_sparsity", "ticket_density", "loss_height", "limit_tolerance", "gap_refilled")
_SAME += ("train_measured", "curvature_samples", "lanczos_probes", "lanczos_steps")
_WITHIN = ("all_seeds", "rewind_steps", "probe_levels", "limit_levels", "control_levels")
_WITHIN += ("perturbation_lengths", "prune_ratios")


def evidence(chosen: Experiment, names: Sequence[str], folder: Path = FOLDER) -> str | None:
    """The name under which the tables `names` are published of an experiment with the same recipe
    and thresholds, and with all the seeds, rewind steps, levels, ... of `chosen`."""
    for name in published_names(folder):
        known, tables_there, about = published(name, folder)
        same = all(getattr(known, field) == getattr(chosen, field) for field in _SAME)
        covers = all({*getattr(chosen, field)} <= {*getattr(known, field)} for field in _WITHIN)
        has_all = covers and about["recipe"] == chosen.recipe and {*names} <= {*tables_there}
        if same and has_all and not _with_gaps(chosen, tables_there, names):
            return name
    return None


def shown(e: Experiment, names: Sequence[str], jobs=None, backend="local", compute=True) -> Shown:
    """What a page shows of an experiment: published tables of the same and more seeds, where there
    are any, and with `compute` what this machine computes itself.
    Raises UnmaskError: as `tables.measure`; or nothing is published and nothing may be computed."""
    tables.check_tables(names)
    if not isinstance(compute, bool):
        raise bad("compute", compute, "True or False")
    name = evidence(e, names)
    if name is None and not compute:
        raise UnmaskError(f"compute=False: {', '.join(names)} of {e.preset} are not published")
    here = tables.measure(e, names, jobs=jobs, backend=backend) if compute else None
    if name is None:
        return Shown(e, here)
    known, there, _ = published(name)
    if _with_gaps(known, there, names):  # then the chosen seeds alone, of which all tables are
        known = known.but(first_seed=e.first_seed, seeds=e.seeds)
    found = {table: there[table][there[table].seed.isin(known.all_seeds)] for table in names}
    return Shown(known, found, name, here and (e, here))
