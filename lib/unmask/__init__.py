"""unmask: what is encoded in a winning ticket's mask?

The names a notebook needs. They are looked up on first use, so that `import unmask` costs nothing.
"""

import importlib

_HOME = {
    "UnmaskError": "errors", "Experiment": "experiments", "experiment": "experiments", "PRESETS": "experiments",
    "Store": "store", "Runs": "chains", "table": "measure", "published": "results",
}
_MODULES = ("barriers", "chains", "claims", "curvature", "data", "errors", "execute", "experiments", "figures", "landscape", "limits",
            "measure", "networks", "parallel", "perturbations", "processes", "pruning", "results", "retraining", "store", "train")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
