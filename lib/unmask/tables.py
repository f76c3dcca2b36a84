"""Tables: tidy measurements, the interface between what is trained and what is drawn or claimed.

A table is declared where it is measured, by `table`. It is made of parts, one for each seed (and
rewind step, ...), computed independently and stored. All errors are shares in [0, 1], losses are in
nats. Nothing here imports torch before something is computed.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import groupby, product
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from . import chains, parallel, processes
from .chains import Place
from .errors import UnmaskError
from .experiments import Experiment, experiment
from .store import TABLE, TENSORS, Store

if TYPE_CHECKING:
    from .lab import Lab

TABLES: dict[str, Table] = {}


class Part(NamedTuple):
    """One part of a table."""

    table: str
    keys: tuple

    def __str__(self) -> str:
        named = zip(TABLES[self.table].keys, self.keys)
        words = (f"{key.replace('_', ' ')} {value}" for key, value in named)
        return f"{self.table}, {', '.join(words)}"


Node = Place | Part  # what there is to compute


@dataclass(eq=False)
class Table:
    """A measurement, called with a lab and keys; declare one with `table`.

    `measure`: the function of a lab and keys. `keys`: what its parts go by; the first is "seed".
    `reads`: fields of the experiment on which a part depends, beside the recipe. `steps`: training
    steps that a part takes itself, a function of experiment and keys; `passes`: samples that it
    sends through the network, forward, likewise; `memory`: bytes that it takes beside network and
    data, likewise. `tensors`: it is no table but a dict of tensors that several tables are made
    from. `asked`: it is computed only where it is asked for, by its name if it has `cases`, or else
    part by part. `cases`: which keys an experiment has; by default every seed (and rewind step, and
    each level that the field `levels` names, all below the last, as the next is measured, too).
    `needs`: what a part is made from, a function of experiment and keys; by default the whole IMP
    chain of its seed and rewind step."""

    measure: Callable
    keys: tuple[str, ...]
    reads: tuple[str, ...] = ()
    steps: Callable[..., float] = lambda e, *keys: 0
    passes: Callable[..., float] = lambda e, *keys: 0
    memory: Callable[..., float] = lambda e, *keys: 0
    tensors: bool = False
    asked: bool = False
    cases: Callable[[Experiment], Iterable[tuple]] | None = None
    levels: str = ""
    needs: Callable[..., Iterable[Node]] | None = None

    def __post_init__(self):
        functools.update_wrapper(self, self.measure)
        self.name = self.measure.__name__
        TABLES[self.name] = self

    def __call__(self, lab: Lab | Shelf, *keys):
        from .lab import Lab
        from .train import single_thread

        # from a shelf an entry may have gone since it was seen
        lab = Lab(*lab) if isinstance(lab, Shelf) else lab
        with single_thread():
            return self.measure(lab, *keys)

    def __reduce__(self) -> str:  # to a worker it goes by name, as a function does
        return self.__qualname__

    def parts(self, e: Experiment) -> list[Part]:
        """All parts of an experiment.
        Raises UnmaskError: the table is about levels that the experiment does not have."""
        if "control_every" in self.reads and not e.control_levels:
            said = f"control_every={e.control_every}: must be at most levels={e.levels}"
            raise UnmaskError(f"{said}; control_every={e.levels} fits")
        ranges = {"seed": e.all_seeds, "rewind_step": e.rewind_steps}
        if self.levels:
            ranges["level"] = levels = getattr(e, self.levels)
            if levels[-1] >= e.levels:
                fit = ",".join(str(level) for level in levels if level < e.levels) or "0"
                said = f"{self.levels}={list(levels)}: must be below levels={e.levels}, as the next"
                raise UnmaskError(f"{said} is measured, too; {self.levels}={fit} fits")
        cases = self.cases(e) if self.cases else product(*(ranges[key] for key in self.keys))
        return [Part(self.name, keys) for keys in cases]

    def parents(self, e: Experiment, keys: tuple) -> list[Node]:
        if self.needs:
            return list(self.needs(e, *keys))
        named = dict(zip(self.keys, keys))
        return chains.chain(e, named["seed"], named.get("rewind_step", e.latest))

    def read(self, lab: Lab | Shelf, keys: tuple):
        """A part, from the store, its keys in front; measured first if it is not there."""
        name, began = entry(lab, Part(self.name, keys), ending=False), time.perf_counter()
        if not self.tensors:
            part = lab.store.table(name, lambda: self(lab, *keys))
            part = labelled(part, **dict(zip(self.keys, keys)))
        elif (part := lab.store.tensors(name)) is None:
            part = self(lab, *keys)
            lab.store.put_tensors(name, part, time.perf_counter() - began)
        lab.store.finish()
        return part


class Shelf(NamedTuple):
    """What of a lab is needed to read what its store has: no network, and no torch."""

    experiment: Experiment
    store: Store


def table(keys: tuple[str, ...], **options) -> Callable[[Callable], Table]:
    """Declare a table: a function of a lab and `keys`, to a tidy data frame without them. Options
    are the fields of `Table`."""
    return lambda measure: Table(measure, keys, **options)


@functools.cache
def load_findings() -> dict[str, ModuleType]:
    """Import what declares tables and judges them, the entry points `unmask.findings`: by name.
    Raises UnmaskError: there is none."""
    if not (found := entry_points(group="unmask.findings")):
        raise UnmaskError("no finding is installed: run pip install -e . in the checkout again")
    return {entry_point.name: entry_point.load() for entry_point in found}


def known_tables(asked: bool = False) -> list[str]:
    """The names of all tables that experiments have, in the order of the findings; `asked`: after
    them those that are computed only where they are named."""
    load_findings()
    known = [name for name, table in TABLES.items() if not (table.tensors or table.asked)]
    return known + [n for n, table in TABLES.items() if asked and table.asked and table.cases]


def check_tables(names: Iterable[str]) -> None:
    """Raises UnmaskError: a name is not that of a table."""
    for name in names:
        if name not in (known := known_tables(asked=True)):
            raise UnmaskError(f"table={name!r}: must be one of {', '.join(known)}")


def measure(
    chosen: Experiment | str,
    names: Sequence[str] | None = None,
    store: Store | Path | str | None = None,
    jobs: int | None = None,
    backend: str = "local",
    address: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Tables of an experiment by name, for all seeds (and rewind steps); computed where missing.

    Args:
        chosen: the experiment, or the name of a preset.
        names: of the tables; all if not given.
        store: where results are kept, or its folder or URL; by default, see `store.Store`.
        jobs: processes to use; by default, one for each core, or one on a GPU. What comes out does
            not depend on it. On a cluster, how many tasks at a time at most.
        backend: "local", or "ray" for the Ray cluster at an `address`; by default that which this
            machine is part of, or else one of its own. All its nodes have to see the store.
    Raises UnmaskError: bad input, found before any computing."""
    names = known_tables() if names is None else names
    e = chosen if isinstance(chosen, Experiment) else experiment(chosen)
    lab = Shelf(e, store if isinstance(store, Store) else Store(store))
    if not all(lab.store.whole(entry(lab, part)) for part in all_parts(e, names)):
        from .lab import Lab

        compute(lab := Lab(*lab), names, jobs, backend, address)
    return {name: read(lab, name) for name in names}


def compute(
    lab: Lab,
    wanted: Sequence[str | Node],
    jobs: int | None = None,
    backend: str = "local",
    address: str | None = None,
) -> None:
    """Put all parts of named tables, or single nodes, into the lab's store, in parallel; see
    `measure`.
    Raises UnmaskError: bad input, found before any computing."""
    parallel.check_jobs(jobs)
    parallel.check_backend(backend, address)
    if parents := missing(lab, wanted):
        lab.store.prepare()
        _ = lab.data  # before there are several processes to read or make it
        if backend == "ray":
            from .cluster import connected

            workers = connected(lab, jobs, address)
        else:
            workers = parallel.local(lab, jobs)
        with workers as found:
            if (said := estimate(lab, parents, max(1, found.slots))) and processes.rank() == 0:
                print(f"unmask: {said}", file=sys.stderr, flush=True)
            parallel.run(plan(lab, parents, found.slots), found)


def estimate(lab: Lab, nodes: Iterable[Node], jobs: int, least=10_000, brief=0.1) -> str:
    """What there is to compute and how long that may take, in words, from a few steps that are
    timed; nothing for fewer than `least` steps, or less than `brief` hours."""
    from .train import step_seconds

    e, counted = lab.experiment, [work(lab.experiment, node) for node in nodes]
    steps, passes = map(sum, zip(*counted))
    if steps < least:
        return ""
    networks = sum(isinstance(node, Place) for node in nodes)
    seconds = step_seconds(e, lab.data.train, lab.initial(e.first_seed), lab.dense_mask)
    # forward and backward are about three times forward
    hours = seconds * (steps + passes / (3 * e.batch_size)) / jobs / 3600
    said = (
        f"{networks:,} networks to train and {len(counted) - networks:,} parts of tables to "
        f"measure, {steps:,.0f} training steps: about {hours:,.1f} hours with {jobs} at a time, at "
        f"{1000 * seconds:.3g} ms a step"
    )
    return said if hours >= brief else ""


def read(lab: Lab | Shelf, name: str) -> pd.DataFrame:
    """A whole table from the store."""
    parts = [TABLES[name].read(lab, keys) for _, keys in TABLES[name].parts(lab.experiment)]
    return pd.concat(parts, ignore_index=True)


def complete(lab: Lab, names: Sequence[str]) -> list[str]:
    """Those of the named tables that are in the store with all their parts."""
    parts = {name: TABLES[name].parts(lab.experiment) for name in names}
    return [name for name in names if all(entry(lab, p) in lab.store for p in parts[name])]


def labelled(table: pd.DataFrame, **labels) -> pd.DataFrame:
    """The table with constant columns put in front."""
    return pd.concat([pd.DataFrame(labels, index=table.index), table], axis=1)


# What is computed, and in which order


def entry(lab: Lab | Shelf, node: Node, ending: bool = True) -> str:
    """A node's name in the store."""
    if isinstance(node, Place):
        return lab.name(node) + TENSORS * ending
    declared, e = TABLES[node.table], lab.experiment
    named = dict(zip(declared.keys, node.keys))
    folder = f"{e.recipe}/seed{named.pop('seed')}"
    if "rewind_step" in named:
        folder += f"/rewind{named.pop('rewind_step'):05d}"
    words = [node.table, *(str(value).replace(" ", "-") for value in named.values())]
    name = f"{folder}/{'-'.join(words)}-{e.digest(*declared.reads)}"
    return name + (TENSORS if declared.tensors else TABLE) * ending


def all_parts(e: Experiment, wanted: Sequence[str | Node]) -> list[Node]:
    """Single nodes as they are, named tables in parts.
    Raises UnmaskError: there is no such table, or it is about levels that the experiment lacks."""
    check_tables(name for name in wanted if isinstance(name, str))
    parts, said = [], []
    for one in wanted:
        try:
            parts += [one] if isinstance(one, tuple) else TABLES[one].parts(e)
        except UnmaskError as error:
            said.append(str(error))
    if said:  # all that does not fit at once, each once
        raise UnmaskError("; ".join(dict.fromkeys(said)))
    return parts


def missing(lab: Lab, wanted: Sequence[str | Node]) -> dict[Node, list[Node]]:
    """Of the graph, what is not in the lab's store."""
    return graph(lab.experiment, wanted, lambda node: lab.store.whole(entry(lab, node)))


def graph(
    e: Experiment, wanted: Sequence[str | Node], there: Callable[[Node], bool] = lambda node: False
) -> dict[Node, list[Node]]:
    """All that is to be computed for named tables or nodes, each with what it is made from.

    What is `there` needs nothing, nor does what only it would need.
    Raises UnmaskError: tables are about levels that the experiment does not have."""
    parents, waiting, seen = {}, all_parts(e, wanted)[::-1], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if not there(node):
            if isinstance(node, Place):
                parents[node] = chains.parents(e, node)
            else:
                parents[node] = TABLES[node.table].parents(e, node.keys)
            waiting += parents[node]
    return parents


def plan(lab: Lab, parents: dict[Node, list[Node]], jobs: int) -> list[parallel.Task]:
    """What is to be computed, as tasks: one for each part of a table and each level of a chain.

    Seeds that can be trained side by side share a task, as long as there is a task for every one of
    `jobs`."""
    # Bundle: the networks of one kind and rewind step, all seeds and levels, are one lane.
    lanes, tasks = defaultdict(list), []
    for node in parents:
        if isinstance(node, Part):
            tasks.append(_task(lab, parents, [node]))
        elif node.level == 0:
            lanes["dense",].append(node)
        else:
            sort = "chain" if node.kind in chains.CHAINS else "control"
            lanes[sort, node.kind, node.rewind_step].append(node)
    # Share out: the trainings of lanes that can go on at the same time among all processes.
    alike = Counter(sort for sort, *_ in lanes)
    for (sort, *_), places in lanes.items():
        share = jobs / alike[sort]
        places.sort(key=lambda place: (place.level, place.seed))
        if sort == "control":
            groups = shared_out(lab, places, share)
        else:  # seeds keep together from level to level
            crews = shared_out(lab, sorted({place.seed for place in places}), share)
            levels = [list(level) for _, level in groupby(places, key=lambda place: place.level)]
            groups = [[p for p in level if p.seed in seeds] for level in levels for seeds in crews]
        tasks += [_task(lab, parents, group) for group in groups if group]
    return tasks


def _task(lab: Lab, parents: dict, nodes: Sequence[Node]) -> parallel.Task:
    """One that measures a part of a table, or trains networks, which have these parents."""
    from .train import replicates_at_once

    e = lab.experiment
    if isinstance(nodes[0], Place):
        function, arguments, networks, memory = train_places, tuple(nodes), len(nodes), 0
    else:
        table, keys = nodes[0]
        function, arguments = TABLES[table].read, (keys,)
        networks, memory = replicates_at_once(e, lab.device), TABLES[table].memory(e, *keys)
    # Forward and backward are about three times forward; and to start the operations of a small
    # network takes as long as two replicates do.
    training = 3 * e.batch_size * (1 + 2 / networks * e.known_network.signals)
    outputs = []
    for node in nodes:
        steps, passes = work(e, node)
        outputs.append(parallel.Output(entry(lab, node), str(node), training * steps + passes))
    needed = tuple(frozenset(entry(lab, parent) for parent in parents[node]) for node in nodes)
    return parallel.Task(function, arguments, tuple(outputs), needed, networks, memory)


def shared_out(lab: Lab, items: Sequence, parts: float) -> list[Sequence]:
    """At least `parts` groups of much the same size where there are as many items, of replicates
    that can be trained side by side."""
    from .train import replicates_at_once

    largest = replicates_at_once(lab.experiment, lab.device)
    count = min(len(items), max(math.ceil(parts), math.ceil(len(items) / largest)))
    ends = [len(items) * i // count for i in range(count + 1)]
    return [items[first:last] for first, last in zip(ends, ends[1:])]


def work(e: Experiment, node: Node) -> tuple[float, float]:
    """What a node costs beside what it is made from: training steps, and samples that are sent
    through the network to be measured."""
    if isinstance(node, Place):
        return e.steps - node.first_step(), 0
    declared = TABLES[node.table]
    return declared.steps(e, *node.keys), declared.passes(e, *node.keys)


def train_places(lab: Lab, *places: Place) -> None:
    """Train what is at these places, side by side where they can be.
    Raises Degenerate: for what diverged; the others are in the store."""
    lab.tickets(places)
