"""Measurements: tidy tables, the interface between what is trained and what is drawn or claimed.

A table is made of parts, one for each seed (and rewind step), computed independently and stored. All errors are shares
in [0, 1], losses are in nats.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, groupby, product
from typing import NamedTuple

import pandas as pd

from . import data, landscape, limits, parallel, perturbations, retraining
from .barriers import barrier, grid, interpolate, segment
from .chains import CHAINS, CONTROLS, RETRAININGS, Place, Runs
from .errors import UnmaskError
from .experiments import Experiment
from .store import TABLE, TENSORS, Store
from .train import single_thread, together

INTERPOLATED, REESTIMATED = "interpolated", "re-estimated"


def levels(runs: Runs, seed: int, rewind_step: int) -> pd.DataFrame:
    """Error at every level of one chain. Columns: level, density, survivors, test_error, train_error, train_loss."""
    rows = []
    for level in range(runs.experiment.levels + 1):
        state = runs.level(seed, rewind_step, level).state
        train = runs.evaluate(state, "train")
        rows.append({"level": level, "density": runs.density(level), "survivors": runs.survivors(level),
                     "test_error": runs.evaluate(state).error, "train_error": train.error, "train_loss": train.loss})
    return pd.DataFrame(rows)


def segments(runs: Runs, seed: int, rewind_step: int) -> pd.DataFrame:
    """Performance along the segments between successive levels of one chain.

    Columns: level, next_level, norms, t, and the metrics. Batch-norm statistics are interpolated like all else; with
    `norms` "re-estimated", at the ends and the midpoint only, they are those of the training data at each point.
    """
    parts = []
    for level in range(runs.experiment.levels):
        ends = [runs.level(seed, rewind_step, end).state for end in (level, level + 1)]
        for norms, points in ((INTERPOLATED, grid(runs.experiment.barrier_points)),
                              (REESTIMATED, (0.0, 0.5, 1.0))):
            part = segment(runs.network, *ends, points, runs.measured, reestimate=norms == REESTIMATED)
            parts.append(_labelled(part, level=level, next_level=level + 1, norms=norms))
    return pd.concat(parts, ignore_index=True)


def pairs(runs: Runs, seed: int, rewind_step: int) -> pd.DataFrame:
    """Test-error barrier at the midpoint between every two levels of one chain. Columns: level, other, barrier."""
    states = [runs.level(seed, rewind_step, level).state for level in range(runs.experiment.levels + 1)]
    ends = [runs.evaluate(state).error for state in states]
    rows = []
    for level, other in combinations(range(len(states)), 2):
        middle = runs.evaluate(interpolate(states[level], states[other], 0.5)).error
        path = pd.DataFrame({"t": (0.0, 0.5, 1.0), "test_error": (ends[level], middle, ends[other])})
        rows.append({"level": level, "other": other, "barrier": barrier(path)})
    return pd.DataFrame(rows)


def controls(runs: Runs, seed: int) -> pd.DataFrame:
    """IMP and its controls from the last rewind step, each against the IMP solution one level before.

    Columns: kind ("imp" or a control), level, density, the metrics, previous_error (test error of the IMP solution at
    level - 1), barrier (test error, between the two).
    """
    e = runs.experiment
    rows = []
    for level in e.control_levels:
        previous = runs.level(seed, e.rewind_steps[-1], level - 1).state
        tickets = {"imp": runs.level(seed, e.rewind_steps[-1], level)}
        tickets |= {kind: runs.control(kind, seed, level) for kind in CONTROLS}
        for kind, ticket in tickets.items():
            path = segment(runs.network, previous, ticket.state, grid(e.barrier_points), runs.measured,
                           ("test_error",))
            train = runs.evaluate(ticket.state, "train")
            rows.append({"kind": kind, "level": level, "density": runs.density(level),
                         "test_error": path["test_error"].iloc[-1], "train_error": train.error,
                         "train_loss": train.loss, "previous_error": path["test_error"].iloc[0],
                         "barrier": barrier(path)})
    return pd.DataFrame(rows)


class Table(NamedTuple):
    part: Callable[..., pd.DataFrame]  # of (runs, *keys)
    keys: tuple[str, ...]
    fields: tuple[str, ...]  # of the experiment, on which a part depends beside the recipe
    # of the experiment, the keys of all parts; by default, every seed (and rewind step)
    cases: Callable[[Experiment], list[tuple]] | None = None


def _planes(e: Experiment) -> list[tuple]:
    # One seed: a plane is a picture. The first and the last rewind step: where IMP fails, and where it works.
    return list(product((e.first_seed,), sorted({e.rewind_steps[0], e.rewind_steps[-1]}), landscape.PLANES))


def _probed(e: Experiment) -> list[tuple]:
    return list(product(e.all_seeds, e.rewind_steps, _levels_of("probe_levels", e)))


def _limited(e: Experiment) -> list[tuple]:
    return list(product(e.all_seeds, _levels_of("limit_levels", e)))


def _levels_of(field: str, e: Experiment) -> tuple[int, ...]:
    levels = getattr(e, field)
    if levels[-1] >= e.levels:
        raise UnmaskError(f"{field}={list(levels)}: must be at most {e.levels - 1} each; the chain has levels 0 to "
                          f"{e.levels}, and what is measured needs a next one")
    return levels


TABLES = {
    "levels": Table(levels, ("seed", "rewind_step"), ("levels", "train_measured")),
    "segments": Table(segments, ("seed", "rewind_step"), ("levels", "barrier_points", "train_measured")),
    "pairs": Table(pairs, ("seed", "rewind_step"), ("levels",)),
    "controls": Table(controls, ("seed",), ("levels", "barrier_points", "control_every", "rewind_steps", "train_measured")),
    "magnitudes": Table(retraining.magnitudes, ("seed",), ("levels", "control_every", "rewind_steps")),
    "gaps": Table(retraining.gaps, ("seed", "rewind_step"), ("levels",)),
    "refill": Table(retraining.refill, ("seed",), ("levels", "control_every", "rewind_steps")),
    "next_cuts": Table(retraining.next_cuts, ("seed",), ("levels", "rewind_steps", "train_measured")),
    "retraining_methods": Table(retraining.retraining_methods, ("seed",),
                                ("levels", "barrier_points", "control_every", "rewind_steps")),
    "landscape": Table(landscape.landscape, ("seed", "rewind_step", "plane"),
                       ("levels", "barrier_points", "plane_points"), _planes),
    "perturbations": Table(perturbations.perturbations, ("seed", "rewind_step", "level"),
                           ("barrier_points", "perturbation_lengths"), _probed),
} | {
    part.__name__: Table(part, ("seed", "level"), ("rewind_steps", *fields), _limited) for part, fields in (
        (limits.spectra, limits.CURVATURE),
        (limits.curvatures, limits.CURVATURE),
        (limits.predictions, (*limits.CURVATURE, "loss_height")),
        (limits.displacements, ("curvature_samples", "prune_fraction")),
        (limits.prunings, ("prune_ratios", "barrier_points")))
}


def table(name: str, experiment: Experiment, store: Store | None = None, jobs: int | None = None) -> pd.DataFrame:
    """The named table of the experiment, for all seeds (and rewind steps); what is missing is computed first.

    Args:
        name: one of `TABLES`.
        store: where results are kept; by default, see `store.default_root`.
        jobs: processes to use; by default, the number of cores, or one on a GPU. The table does not depend on it.

    Raises:
        UnmaskError: bad input, found before any computing.
    """
    _check_table(name)
    store = store or Store()
    runs = Runs(experiment, store)
    compute(experiment, store, jobs, tables=(name,))
    return pd.concat([
        _labelled(read_part(runs, name, keys), **dict(zip(TABLES[name].keys, keys)))
        for keys in _all_keys(experiment, name)], ignore_index=True)


def all_tables(experiment: Experiment, store: Store | None = None, jobs: int | None = None) -> dict[str, pd.DataFrame]:
    """Every table of the experiment, by name."""
    return {name: table(name, experiment, store, jobs) for name in TABLES}


def _check_table(name: str) -> None:
    if name not in TABLES:
        raise UnmaskError(f"table={name!r}: must be one of {', '.join(TABLES)}")


def complete(experiment: Experiment, store: Store, tables: Sequence[str]) -> list[str]:
    """Those of the tables of the experiment that are in the store with all their parts."""
    runs = Runs(experiment, store)
    return [name for name in tables
            if all(_part_name(runs, name, keys) + TABLE in store for keys in _all_keys(experiment, name))]


def compute(experiment: Experiment, store: Store, jobs: int | None = None, tables: tuple[str, ...] = tuple(TABLES),
            ) -> None:
    """Everything the named tables need: trainings first, then measurements, each in parallel.

    Raises:
        UnmaskError: bad input, found before any computing.
    """
    for name in tables:
        _check_table(name)
    parallel.check_jobs(jobs)
    runs = Runs(experiment, store)
    jobs = parallel.check_jobs(jobs, runs.device.type)
    waves = plan(runs, tables, jobs)
    parts = [_part_name(runs, name, keys) + TABLE for name in tables for keys in _all_keys(experiment, name)]
    store.drop_damaged(parts)
    if all(part in store for part in parts):
        return
    store.drop_damaged([name for wave in waves for task in wave for name, _ in task.outputs])  # before anything is built on it
    data.load(experiment, store)  # generated once, before there are several processes to do it
    parallel.run(waves, experiment, store, jobs)


def training_steps(e: Experiment) -> dict[str, int]:
    """How many training steps of one network an empty store costs, by what they are for."""
    late = e.steps - e.rewind_steps[-1]
    chains = sum(e.levels * (e.steps - step) for step in e.rewind_steps)
    controls = len(e.control_levels) * ((len(CONTROLS) - 1) * late + e.steps)  # one of them trains from step 0
    pairs = sum((2 * len(e.perturbation_lengths) + 1 - (level > 0)) * (e.steps - step)
                for step in e.rewind_steps for level in e.probe_levels)
    methods = len(RETRAININGS) * e.levels * late
    return {"Findings 0 and 1": e.seeds * (e.steps + chains + controls), "Finding 2": e.seeds * pairs,
            "Finding 3": e.seeds * len(e.limit_levels) * len(limits.MASKS) * len(e.prune_ratios) * late,
            "Finding 4": e.seeds * methods}


def plan(runs: Runs, tables: Sequence[str], jobs: int) -> list[list[parallel.Task]]:
    """All trainings the tables need, then all measurements, in waves: a wave needs nothing but the waves before it.

    The largest Hessian takes as long as many measurements: those that need none go beside it.
    Replicates that can be trained side by side share a task, as long as there is a task for every one of `jobs`.
    """
    e = runs.experiment

    def task(places):
        return parallel.Task("measure:train_places", tuple(places), tuple(
            (runs.name(place) + TENSORS, _describe(place)) for place in places))

    def chain(seeds, step, kind):
        return task([Place(kind, seed, step, level) for level in range(1, e.levels + 1) for seed in seeds])

    def control(kind):
        places = [Place(kind, seed, e.rewind_steps[-1], level) for level in e.control_levels for seed in e.all_seeds]
        return [task(group) for group in _groups(runs, places, jobs)]

    def measurement(name, keys):
        what = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in zip(TABLES[name].keys, keys))
        output = _part_name(runs, name, keys) + TABLE, f"{name}, {what}"
        return parallel.Task("measure:read_part", (name, keys), (output,))

    last, used = e.rewind_steps[-1], defaultdict(set)  # seeds of each kind of chain
    for name in tables:
        for keys in _all_keys(e, name):
            places = dict(zip(TABLES[name].keys, keys))
            used["imp", places.get("rewind_step", last)].add(places["seed"])
    if {"refill", "retraining_methods"} & set(tables):
        used |= {(kind, last): set(e.all_seeds) for kind in RETRAININGS}
    seeds = sorted(set().union(*used.values()))
    dense = [task([Place("imp", seed, e.rewind_steps[0], 0) for seed in group]) for group in _groups(runs, seeds, jobs)]
    chains = [chain(group, step, kind) for kind, step in product(CHAINS, e.rewind_steps)
              for group in _groups(runs, sorted(used.get((kind, step), ())), jobs / len(used))]
    waves = [dense, chains]
    if "controls" in tables:
        waves[1] += control("random") + control("one-shot")
        waves += [control("reinitialized") + control("shuffled")]
    curved = [name for name in tables if name in ("spectra", "curvatures", "predictions")]  # which share Hessians
    hessians = [limits.curvature_task(runs, *keys) for keys in _all_keys(e, "spectra")] if curved else []
    others = [measurement(name, keys) for name in tables if name not in curved for keys in _all_keys(e, name)]
    return waves + [hessians + others, [measurement(name, keys) for name in curved for keys in _all_keys(e, name)]]


def _groups(runs: Runs, items: Sequence, parts: float) -> Iterator[Sequence]:
    """At least `parts` groups of much the same size where there are as many items, of replicates that can be trained
    side by side."""
    count = min(len(items), max(math.ceil(parts), math.ceil(len(items) / together(runs.experiment, runs.device))))
    return (items[len(items) * i // count:len(items) * (i + 1) // count] for i in range(count))


def _describe(place: Place) -> str:
    if place.level == 0:
        return f"seed {place.seed}, dense"
    return f"{place.kind}, seed {place.seed}, rewind step {place.rewind_step}, level {place.level}"


def _all_keys(experiment: Experiment, name: str) -> list[tuple]:
    """The keys of every part of a table.

    Raises:
        UnmaskError: the table is about levels that the chain does not have, or there are no control levels.
    """
    if "control_every" in TABLES[name].fields and not experiment.control_levels:
        raise UnmaskError(f"control_every={experiment.control_every}: must be at most levels ({experiment.levels})")
    if TABLES[name].cases:
        return TABLES[name].cases(experiment)
    ranges = {"seed": experiment.all_seeds, "rewind_step": experiment.rewind_steps}
    return list(product(*(ranges[key] for key in TABLES[name].keys)))


def _part_name(runs: Runs, name: str, keys: tuple) -> str:
    places, fields = dict(zip(TABLES[name].keys, keys)), TABLES[name].fields
    folder = f"{runs.experiment.recipe}/seed{places['seed']}"
    if "rewind_step" in places:
        folder += f"/rewind{places['rewind_step']:05d}"
    name = "-".join([name, *(str(places[key]).replace(" ", "-") for key in places if key not in ("seed", "rewind_step"))])
    return f"{folder}/{name}-{runs.experiment.digest(*fields)}"


def _labelled(table: pd.DataFrame, **labels) -> pd.DataFrame:
    """The table with constant columns put in front."""
    return pd.concat([pd.DataFrame(labels, index=table.index), table], axis=1)


def read_part(runs: Runs, name: str, keys: tuple) -> pd.DataFrame:
    """One part of a table, from the store; measured first if it is not there."""
    with single_thread():
        part = runs.store.table(_part_name(runs, name, keys), lambda: TABLES[name].part(runs, *keys))
    runs.store.finish()
    return part


def train_places(runs: Runs, *places: Place) -> None:
    """Train what is at these places, those of a level side by side, level after level."""
    kinds = groupby(places, key=lambda place: place.level if place.kind in CHAINS else None)
    for _, group in kinds:
        runs.tickets(list(group))
