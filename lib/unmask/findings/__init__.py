"""The paper: a module for each finding.

Each has, in this order: what it measures (functions declared as tables), how it judges, the numbers
that its prose quotes, and its figures. Only measuring needs torch: modules of the instrument that
import it are reached as `unmask.NAME`, on first use. A finding imports the instrument, never
another finding.
"""

from importlib import import_module

# By what claims call them; in the order of the book, which tables and verdicts follow.
_NAMES = {
    "0": "tickets",
    "1": "connectivity",
    "2": "robustness",
    "3": "limit",
    "4": "retraining",
    "picture": "landscape",
}
diagnosis = import_module(".diagnosis", __name__)  # of a network of one's own, when it is asked for
FINDINGS = {finding: import_module(f".{name}", __name__) for finding, name in _NAMES.items()}
