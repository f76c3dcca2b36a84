"""The console script `unmask`. Heavy libraries are imported where they are used: `unmask presets`
answers at once."""

import argparse
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path

from . import processes
from .chains import place
from .errors import UnmaskError
from .experiments import PRESETS, Experiment, experiment, literal, meanings, parse_setting
from .remote import exists, is_url
from .store import Store


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0; 1 if the store is damaged; 2, with one line on stderr, for bad
    input."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no such letter
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    try:
        options = _parser().parse_args(arguments)
        status = options.command(options) or 0
        sys.stdout.flush()
        return status
    except UnmaskError as error:
        who = f"process {processes.rank()}: " if processes.count() > 1 else ""
        print(f"unmask: {who}error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        said = "what was finished is in the store, and the same command goes on from there"
        print(f"unmask: interrupted; {said}", file=sys.stderr)
        return 130
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        if isinstance(error, BrokenPipeError):  # the reader of `unmask store ls | head` is content
            return 0
        print(f"unmask: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        processes.leave()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UnmaskError(f"{message}; see '{self.prog} --help'")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="unmask", description="What is encoded in a winning ticket's mask?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    of_experiment = argparse.ArgumentParser(add_help=False)
    of_experiment.add_argument("preset", metavar="PRESET")
    said = "change a field of the preset; lists as 0,50,100"
    field = dict(metavar="FIELD=VALUE", help=said)
    of_experiment.add_argument("--set", action="append", default=[], dest="settings", **field)

    def add(name, function, said, *parents):
        command = commands.add_parser(name, help=said, parents=parents)
        command.set_defaults(command=function)
        return command

    add("presets", _presets, "list the presets and their settings")
    add("show", _show, "one preset's settings, and what can be pruned", of_experiment)

    command = add("run", _run, "compute everything the notebooks need", of_experiment)
    said = "processes to use (default: one for each core, or one on a GPU; all of a cluster)"
    command.add_argument("--jobs", type=int, metavar="N", help=said)
    said = "where: processes of this machine, or a Ray cluster (default: local)"
    command.add_argument("--backend", default="local", metavar="local|ray", help=said)
    said = "of the Ray cluster (default: that of this machine, or else one of its own)"
    command.add_argument("--address", help=said)
    said = "only these tables, and what they need (default: all of them)"
    command.add_argument("--tables", type=_names, metavar="NAME,...", help=said)
    said = "also write the tables, with provenance, to results/NAME (default: the preset's name)"
    command.add_argument("--publish", nargs="?", const=True, metavar="NAME", help=said)

    said = "has your network a ticket, and from which rewind step? Without running IMP"
    command = add("diagnose", _diagnose, said, of_experiment)
    said = "what would take longer is left out, and said so (default: 5)"
    command.add_argument("--minutes", type=float, default=5.0, metavar="M", help=said)
    command.add_argument("--jobs", type=int, metavar="N", help="processes to use, as for run")
    said = "the folder of the page and its numbers (default: build/diagnosis)"
    command.add_argument("--output", type=Path, default=Path("build/diagnosis"), help=said)

    command = add("execute", _execute, "execute notebooks, parameters checked first")
    command.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    said = "set a parameter of the notebooks; values are read as Python literals where they are one"
    pair = dict(nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command.add_argument("-p", dest="parameters", help=said, **pair)
    said = "a folder, or for one notebook a file (default: the folder build/executed)"
    command.add_argument("--output", type=Path, metavar="PATH", help=said)

    command = add("export", _export, "one trained network and its mask, as files", of_experiment)
    said = "by default the last level from the last rewind step, of the first seed, by IMP"
    for name in ("level", "rewind-step", "seed"):
        command.add_argument(f"--{name}", type=int, metavar="N", help=said)
    command.add_argument("--kind", default="imp", help="imp, or another way to prune it")
    said = "the folder to write (default: build/ticket)"
    command.add_argument("--output", type=Path, default=Path("build/ticket"), help=said)

    command = add("store", _store, "what is stored, and whether it is whole")
    command.add_argument("action", choices=("ls", "verify"))
    return parser


def _experiment(options) -> Experiment:
    return experiment(options.preset, dict(map(parse_setting, options.settings)))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] or [""]  # which is no table


def _presets(_) -> None:
    fields = "dataset", "network", "steps", "rewind_steps", "levels", "seeds", "first_seed"
    rows = [("preset", *(field.replace("_", " ") for field in fields), "identity")]
    for name, preset in PRESETS.items():
        rows.append((name, *(_shown(getattr(preset, field)) for field in fields), preset.id))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    print("All settings of one: unmask show PRESET")


def _shown(value) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(options) -> None:
    chosen = _experiment(options)
    from . import networks, pruning

    networks.check_size(chosen)
    network = networks.build(chosen)
    mask = pruning.dense_mask(network, chosen.never_pruned)
    room = max(30, shutil.get_terminal_size().columns - 48)
    for name, meaning in meanings().items():
        said = textwrap.wrap(meaning, room, break_on_hyphens=False)
        print(f"{name:<22}{_shown(getattr(chosen, name)):<25} {said[0]}")
        print("".join(f"{'':<48}{line}\n" for line in said[1:]), end="")
    print()
    for name, kept in mask.items():
        print(f"{name:<40}{' x '.join(map(str, kept.shape)):>20}{kept.numel():>14,}")
    total = sum(parameter.numel() for parameter in network.parameters())
    print(f"{pruning.survivors(mask):,} weights of {total:,} parameters can be pruned")


def _run(options) -> None:
    chosen = _experiment(options)
    from . import results, tables
    from .lab import Lab

    processes.join()
    if options.publish is not None:
        name = results.check_name(chosen, None if options.publish is True else options.publish)
    names = tables.known_tables() if options.tables is None else options.tables
    lab = Lab(chosen, Store())
    tables.compute(lab, names, options.jobs, options.backend, options.address)
    if processes.rank() > 0:
        return
    if gone := sorted(set(names) - set(tables.complete(lab, names))):
        said = f"{', '.join(gone)} is not there: the folder was changed while this ran"
        raise UnmaskError(f"store={str(lab.store.root)!r}: {said}")
    what = "everything" if options.tables is None else "what was asked"
    print(f"unmask: {what} for {chosen.preset} (identity {chosen.id}) is in {lab.store.root}")
    if options.publish is not None:
        print(f"unmask: published to {results.publish(lab, name, wanted=names)}")


def _diagnose(options) -> None:
    from . import plots, tables

    _refuse_torchrun("diagnose")
    found = tables.load_findings()["paper"].diagnosis
    diagnosis = found.Diagnosis(_experiment(options), minutes=options.minutes, jobs=options.jobs)
    plots.set_style()
    page = diagnosis.write(options.output)  # can it be?
    for answer in diagnosis.run():
        print(f"{answer}\n", flush=True)
        diagnosis.write(options.output)
    print(f"unmask: wrote {page}")


def _refuse_torchrun(command: str) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UnmaskError(f"{command}: without torchrun, which would have every process run it")


def _execute(options) -> None:
    from .execute import execute, targets

    _refuse_torchrun("execute")
    parameters = {name: literal(value) for name, value in options.parameters}
    for notebook, target in targets(options.notebooks, options.output, parameters):
        execute(notebook, target, parameters)
        print(f"unmask: wrote {target}")


def _export(options) -> None:
    chosen = _experiment(options)
    from .export import export
    from .lab import Lab

    seed = chosen.first_seed if options.seed is None else options.seed
    step = chosen.latest if options.rewind_step is None else options.rewind_step
    level = chosen.levels if options.level is None else options.level
    found = place(chosen, options.kind, seed, step, level)
    print(f"unmask: wrote {export(Lab(chosen, Store()), found, options.output)} ({found})")


def _store(options) -> int:
    store, damaged, unreadable = Store(), 0, []
    if not exists(store.root) or not (is_url(store.root) or store.root.is_dir()):
        raise UnmaskError(f"store={str(store.root)!r}: there is no store")
    # trainings on their way come and go, and are looked at when they are resumed
    names = [name for name in store.names(unreadable.append) if "/unfinished/" not in name]
    for error in unreadable:
        damaged += 1
        print(f"cannot be read  {error.filename}: {error.strerror}")
    for name in names:
        if damage := store.damage(name):
            damaged += 1
            print(f"damaged  {name}: {damage}")
        elif options.action == "ls":
            about = store.provenance(name)
            size, seconds = about["bytes"], about["seconds"]
            print(f"{size:>10,} bytes {seconds:>9.1f} s  {about['date']}  {name}")
    again = " (they are computed again when next needed)" if damaged else ""
    print(f"unmask: {len(names)} entries in {store.root}, {damaged} damaged{again}")
    return 1 if damaged else 0
