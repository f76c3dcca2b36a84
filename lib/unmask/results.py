"""Published results: the tables of an experiment with their provenance, in a folder that git keeps."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from . import claims, measure
from .chains import Runs
from .errors import UnmaskError
from .experiments import PRESETS, Experiment, experiment
from .store import Store, commit, reading_csv, write_atomically

FOLDER = Path(__file__).resolve().parents[2] / "results"


def check_name(chosen: Experiment, name: str | None) -> str:
    """The name to publish under, by default the preset's.

    Raises:
        UnmaskError: it is a preset's and the experiment is not that preset as it stands, or it is no plain name.
    """
    name = chosen.preset if name is None else name
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise UnmaskError(f"publish={name!r}: must be a name of small letters, digits and _")
    if name in PRESETS and chosen != PRESETS[name]:
        raise UnmaskError(f"publish={name!r}: the experiment is not that preset as it stands; give it a name of its own")
    return name


def publish(chosen: Experiment, store: Store, name: str | None = None, folder: Path = FOLDER,
            wanted: Sequence[str] = tuple(measure.TABLES)) -> Path:
    """Write those of the `wanted` tables of the experiment that are whole in the store to `folder/name`, with where they
    came from.

    Time and hardware are those of what the store still has.

    Raises:
        UnmaskError: as `check_name`; nothing to publish, a folder that cannot be written, that has tables which would be
            lost, or another experiment's.
    """
    name = check_name(chosen, name)
    names = measure.complete(chosen, store, wanted)
    if not names:
        raise UnmaskError(f"publish={name!r}: no table of the experiment is whole in {store.root}")
    target = folder / name
    if lost := sorted({path.stem for path in target.glob("*.csv")} - set(names)):
        raise UnmaskError(f"publish={name!r}: {target} has {', '.join(lost)}, which would be lost; delete the folder first")
    if (target / "provenance.json").exists() and name not in PRESETS and published(name, folder)[0] != chosen:
        raise UnmaskError(f"publish={name!r}: {target} has the tables of another experiment; take another name")
    tables = {table: measure.table(table, chosen, store, jobs=1) for table in names}
    waves = measure.plan(Runs(chosen, store), names, jobs=1)
    needed = [entry for wave in waves for task in wave for entry, _ in task.outputs]
    entries = [store.provenance(entry) for entry in needed if entry in store]

    def told(what: str, otherwise: str = "unknown") -> str:
        return ", ".join(sorted({entry.get(what, otherwise) for entry in entries}))

    provenance = {
        "experiment": dataclasses.asdict(chosen), "identity": chosen.id, "published from commit": commit(),
        "computed from commits": told("commit"),
        "computed": " to ".join(sorted({min(e["date"] for e in entries)[:10], max(e["date"] for e in entries)[:10]})),
        "processor": told("processor"), "device": told("gpu", "cpu"),
        "core_seconds": round(sum(e["seconds"] for e in entries)), "entries": len(entries),
        "entries no longer in the store": len(needed) - len(entries),
        "versions": versions() | {"python": told("python"), "torch": told("torch")}}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for table, values in tables.items():
            write_atomically(target / f"{table}.csv", values.to_csv(index=False, lineterminator="\n").encode())
        write_atomically(target / "provenance.json", (json.dumps(provenance, indent=1) + "\n").encode())
    except OSError as error:
        raise UnmaskError(f"publish={str(target)!r}: cannot be written: {error.strerror}") from error
    return target


def published(name: str, folder: Path = FOLDER) -> tuple[Experiment, dict[str, pd.DataFrame], dict]:
    """The experiment, tables and provenance that `publish` wrote under a name.

    Raises:
        UnmaskError: nothing is published under that name.
    """
    source = folder / name
    if not (source / "provenance.json").exists():
        known = ", ".join(names(folder)) or "nothing"
        raise UnmaskError(f"preset={name!r}: is not published; in {folder} there is {known}")
    provenance = _provenance(name, folder)
    tables = {path.stem: reading_csv(path) for path in sorted(source.glob("*.csv"))}
    return experiment(**provenance["experiment"]), tables, provenance


def _provenance(name: str, folder: Path) -> dict:
    return json.loads((folder / name / "provenance.json").read_text())


def names(folder: Path = FOLDER) -> list[str]:
    """What is published: presets in their order, then other names."""
    found = sorted(path.parent.name for path in folder.glob("*/provenance.json"))
    return sorted(found, key=lambda name: (list(PRESETS).index(name) if name in PRESETS else len(PRESETS), name))


def about(chosen: Experiment, tables: dict[str, pd.DataFrame], provenance: dict) -> dict[str, float | str]:
    """What published results are of and where they come from, by name, for the prose; errors and shares in percent."""
    levels = tables["levels"]
    return {
        "setting": {"lenet-300-100": "LeNet-300-100", "resnet20": "ResNet-20"}.get(chosen.network, chosen.network),
        "data": {"mnist": "MNIST", "cifar10": "CIFAR-10"}.get(chosen.dataset, chosen.folder or chosen.dataset),
        "weights": float(levels.survivors.max()), "seeds": float(chosen.seeds),
        "dense_error": float(100 * claims.dense_errors(levels).mean()),
        "last_error": float(100 * levels[(levels.level == chosen.levels) & (levels.rewind_step == chosen.rewind_steps[-1])]
                            .test_error.mean()),
        "last_density": float(100 * levels.density.min()),
        "agreement": 100 * chosen.agreement, "epsilon": 100 * chosen.epsilon, "lmc_threshold": 100 * chosen.lmc_threshold,
        "core_hours": provenance["core_seconds"] / 3600, "computed": provenance["computed"],
        "processor": provenance["processor"], "commit": provenance["published from commit"]}


def in_numbers(chosen: Experiment, tables: dict[str, pd.DataFrame], provenance: dict) -> dict[str, float | str]:
    """What the prose about results published whole quotes, by name, beside what is `about` them; errors in percent.

    Raises:
        UnmaskError: not all tables are there.
    """
    if missing := [name for name in measure.TABLES if name not in tables]:
        raise UnmaskError(f"the published tables of {chosen.preset} lack {', '.join(missing)}, which this page shows")
    levels = tables["levels"]
    late = claims.with_matching(levels, chosen).query("rewind_step == @chosen.rewind_steps[-1]")
    sparsest = late[late.matching].groupby("seed").density.min()
    controls = tables["controls"][tables["controls"].level == chosen.control_levels[-1]].groupby("kind").barrier.mean()
    tickets = claims.against_imp(levels, tables["controls"], chosen).query("kind == 'imp'")
    limits = claims.predicted_and_measured(levels, tables["predictions"], tables["prunings"], chosen)
    limits = limits.query("criterion == 'random subspace' and mask == 'random'").groupby("level")[["predicted", "ratio"]]
    least, most = 100 * limits.min(), 100 * limits.max()
    perturbed = tables["perturbations"].query("kind == 'random' and length == @chosen.perturbation_lengths[-1]")
    robustness = claims.robustness_in_numbers(levels, tables["perturbations"], chosen)
    retraining = claims.retraining_in_numbers(
        levels, *(tables[name] for name in ("gaps", "refill", "next_cuts", "retraining_methods")), chosen)
    connectivity = claims.connectivity_in_numbers(levels, tables["segments"], chosen)
    return about(chosen, tables, provenance) | connectivity | {f"robustness_{name}": value for name, value in robustness.items()} | {
        f"retraining_{name}": value for name, value in retraining.items()} | {
        "longest": chosen.perturbation_lengths[-1], "barrier_at_longest": float(100 * perturbed.barrier.mean()),
        "sparsest": float(100 * sparsest.mean()),
        "control_density": float(100 * tables["controls"].density.min()),
        "barrier_imp": float(100 * controls["imp"]), "barrier_random": float(100 * controls["random"]),
        "barrier_shuffled": float(100 * controls["shuffled"]),
        "ticket_cases": float(len(tickets)), "control_matching": float((tickets.level == chosen.control_levels[-1]).sum()),
        "limit_level": float(chosen.limit_levels[-1])} | {
        f"{place}_{what}_{end}": float(values[column][chosen.limit_levels[at]])
        for place, at in (("dense", 0), ("late", -1)) for end, values in (("least", least), ("most", most))
        for what, column in (("predicted", "predicted"), ("measured", "ratio"))}


def bench(path: Path = FOLDER / "bench.json") -> dict:
    """What `make bench` measured and the repository keeps.

    Raises:
        UnmaskError: there is no such file.
    """
    if not path.exists():
        raise UnmaskError(f"bench: there is no {path}; `make bench BENCH='--output {path}'` writes it")
    return json.loads(path.read_text())


def bench_table(measured: dict) -> pd.DataFrame:
    """The rows of `bench`, to be read: milliseconds, rates, and ratios of one run."""
    rows = pd.DataFrame(measured["rows"]).T
    optional = rows.reindex(columns=["ours, times as fast", "cores busy", "from commit"])
    table = pd.DataFrame({
        "ms": rows["milliseconds"], "per second": rows["per second"],
        "GFLOP/s": rows["GFLOP/s"], "% of matrix product": 100 * rows["of matrix product"],
        "ours, times as fast": rows["textbook ratio"].fillna(optional["ours, times as fast"]),
        "% of cores busy": 100 * optional["cores busy"], "peak MB": rows["peak MB"]}).dropna(axis=1, how="all")
    formats = {"ms": "{:,.2f}", "per second": "{:,.0f}", "GFLOP/s": "{:.1f}", "% of matrix product": "{:.0f}",
               "ours, times as fast": "{:.1f}", "% of cores busy": "{:.0f}", "peak MB": "{:,.0f}"}
    for name in table:
        table[name] = table[name].map(lambda value: "–" if value != value else formats[name].format(value))
    names = [name if kept != kept else f"{name} (before, at {kept})" for name, kept in optional["from commit"].items()]
    return table.set_axis(names).rename_axis("work")


def bench_targets(measured: dict) -> pd.DataFrame:
    """What was aimed at before anything was measured, and what `bench` found; works that it did not time are left out."""
    targets = (("training miniature", "textbook ratio", "least", 2, "times the textbook loop", 1),
               ("training mnist_lenet", "textbook ratio", "least", 15, "times the textbook loop", 1),
               ("training mnist_lenet", "of matrix product", "least", 50, "% of the matrix product's rate", 100),
               ("open_lth's training of LeNet-300-100", "ours, times as fast", "least", 10, "times slower than ours", 1),
               ("book, empty store", "milliseconds", "most", 12, "minutes", 1 / 60_000),
               ("start of unmask presets", "milliseconds", "most", 0.5, "seconds", 1 / 1000),
               ("imports of a notebook", "milliseconds", "most", 3, "seconds", 1 / 1000))
    rows = []
    for work, column, bound, target, unit, scale in targets:
        if work in measured["rows"]:
            found = scale * measured["rows"][work][column]
            met = found >= target if bound == "least" else found <= target
            rows.append({"work": work, "aim": f"at {bound} {target} {unit}", "measured": f"{found:.1f}",
                         "met": "yes" if met else "no"})
    return pd.DataFrame(rows).set_index("work")


def costs(measured: dict) -> pd.DataFrame:
    """Core-hours of training that each preset costs from an empty store: steps counted, times the measured step.

    Of presets whose step was not timed it is extrapolated from how many operations it has, at the rate of ResNet-20's
    (≈).
    """
    rows, timed = {}, measured["rows"]
    for name, chosen in PRESETS.items():
        if name == "smoke" or name not in measured["GFLOP a step"]:  # made for tests, or after the bench was run
            continue
        row, steps = timed.get(f"training {name}"), measure.training_steps(chosen)
        step = row["milliseconds"] if row else 1000 * measured["GFLOP a step"][name] / timed["training cifar10_resnet20"]["GFLOP/s"]
        hours = sum(steps.values()) * step / 3.6e6
        rows[name] = {finding: f"{count / 1e6:,.2f}" for finding, count in steps.items()} | {
            "ms a step": f"{step:.2f}" if row else f"≈{float(f'{step:.2g}'):,.0f}",
            "core-hours": f"{hours:,.1f}" if row else f"≈{float(f'{hours:.2g}'):,.0f}"}
    return pd.DataFrame(rows).T.rename_axis("preset (millions of steps)")


def provenances(folder: Path = FOLDER) -> pd.io.formats.style.Styler:
    """Where each published result comes from, to be read: nothing is cut off."""
    rows = {}
    for name in names(folder):
        told, tables = _provenance(name, folder), list((folder / name).glob("*.csv"))
        rows[name] = {"tables": len(tables), "computed": told["computed"], "core-hours": f"{told['core_seconds'] / 3600:.1f}",
                      "processor": told["processor"], "device": told["device"], "published from commit": told["published from commit"]}
    return pd.DataFrame(rows).T.rename_axis("published").style.set_uuid("published").set_table_attributes('class="dataframe"')


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import numpy
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
