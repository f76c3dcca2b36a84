"""The console script `unmask`. Heavy libraries are imported where they are used: `unmask presets` answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from . import processes
from .errors import UnmaskError
from .experiments import PRESETS, Experiment, experiment, parse_setting


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0; 1 if the store is damaged; 2, with one line on stderr, for bad input."""
    try:
        options = _parser().parse_args(arguments)
        return options.command(options) or 0
    except UnmaskError as error:
        who = f"process {processes.rank()}: " if processes.count() > 1 else ""
        print(f"unmask: {who}error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unmask: interrupted; what was finished is in the store", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of `unmask store ls | head` has seen enough
        sys.stdout = open(os.devnull, "w")
        return 0
    finally:
        processes.leave()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UnmaskError(f"{message}; see '{self.prog} --help'")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="unmask", description="What is encoded in a winning ticket's mask?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("presets", help="list the presets and their settings")
    command.set_defaults(command=_presets)

    command = commands.add_parser("run", help="compute everything the notebooks need, ahead of them")
    command.add_argument("preset", metavar="PRESET")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
                         help="change a field of the preset; lists as 0,50,100")
    command.add_argument("--jobs", type=int, metavar="N", help="processes to use (default: one for each core, or one on a GPU)")
    command.add_argument("--tables", type=lambda text: text.split(","), metavar="NAME,...",
                         help="only what these tables need (default: all of them)")
    command.add_argument("--publish", nargs="?", const=True, metavar="NAME",
                         help="also write the tables, with provenance, to results/NAME (default: the preset's name)")
    command.set_defaults(command=_run)

    command = commands.add_parser("execute", help="execute notebooks, parameters checked first")
    command.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
                         help="set a parameter of the notebooks; values are read as Python literals where they are one")
    command.add_argument("--output", type=Path, metavar="PATH",
                         help="a folder, or for one notebook a file (default: the folder build/executed)")
    command.set_defaults(command=_execute)

    command = commands.add_parser("store", help="what is stored, and whether it is whole")
    command.add_argument("action", choices=("ls", "verify"))
    command.set_defaults(command=_store)
    return parser


def _presets(_) -> None:
    fields = [field.name for field in dataclasses.fields(Experiment) if field.name != "preset"]
    columns = [["", *fields, "identity"]]
    for name, preset in PRESETS.items():
        columns.append([name, *(_shown(getattr(preset, field)) for field in fields), preset.id])
    widths = [2 + max(map(len, column)) for column in columns]
    for name, *values in zip(*columns):
        print(name.ljust(widths[0]) + "".join(value.rjust(width) for value, width in zip(values, widths[1:])))


def _shown(value) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _run(options) -> None:
    chosen = experiment(options.preset).but(**dict(map(parse_setting, options.settings)))
    from . import measure, results
    from .store import Store

    processes.join()
    if options.publish is not None:
        name = results.check_name(chosen, None if options.publish is True else options.publish)
    store = Store()
    measure.compute(chosen, store, options.jobs, tuple(options.tables or measure.TABLES))
    if processes.rank() > 0:
        return
    what = "everything" if options.tables is None else "what was asked"
    print(f"unmask: {what} for {chosen.preset} (identity {chosen.id}) is in {store.root}")
    if options.publish is not None:
        print(f"unmask: published to {results.publish(chosen, store, name, wanted=options.tables or measure.TABLES)}")


def _execute(options) -> None:
    from .execute import execute, targets

    parameters = {name: _literal(value) for name, value in options.parameters}
    for notebook, target in targets(options.notebooks, options.output, parameters):
        execute(notebook, target, parameters)
        print(f"unmask: wrote {target}")


def _literal(text: str):
    import ast

    try:
        value = ast.literal_eval(text)
        return list(value) if isinstance(value, tuple) else value  # papermill writes a tuple as a string
    except (SyntaxError, ValueError):
        return text


def _store(options) -> int:
    from .store import Store

    store, damaged = Store(), 0
    names = list(store.names())
    for name in names:
        damage = store.damage(name)
        damaged += damage is not None
        if damage:
            print(f"damaged  {name}: {damage}")
        elif options.action == "ls":
            about = store.provenance(name)
            print(f"{about['bytes']:>10,} bytes {about.get('seconds', 0):>9.1f} s  {about.get('date', '?')}  {name}")
    print(f"unmask: {len(names)} entries in {store.root}, {damaged} damaged"
          + (" (they are computed again when next needed)" if damaged else ""))
    return 1 if damaged else 0
