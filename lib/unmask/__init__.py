"""unmask: what is encoded in a winning ticket's mask?

The modules here are an instrument: they train, prune, rewind, interpolate, differentiate and store.
`unmask.findings` is the paper: what each finding measures, judges and draws. Names are looked up on
first use, so that `import unmask` costs nothing.
"""

import importlib.util

_HOME = {
    "UnmaskError": "errors",
    "Experiment": "experiments",
    "experiment": "experiments",
    "PRESETS": "experiments",
    "Store": "store",
    "Lab": "lab",
    "measure": "tables",
    "published": "results",
    "shown": "results",
}


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def table(name, experiment, store=None, jobs=None):
    """One table of an experiment (or preset, by name), computed once, then read; see `measure`."""
    from .tables import measure

    return measure(experiment, [name], store, jobs)[name]
