"""Tables whose verdicts are known. Rewound to step 10, levels 1 and 2 match and level 3 does not;
rewound to step 0, no level does. A little noise tells seeds apart."""

import numpy as np
import pandas as pd

from unmask.experiments import experiment

E = experiment("miniature", levels=3, rewind_steps=(0, 10), seeds=6, first_seed=0)
DENSITY = 1.0, 0.4, 0.15, 0.1
EARLY, LATE = (0.04, 0.10, 0.12, 0.20), (0.04, 0.04, 0.045, 0.10)
SEEDS = 6


def noise(seed):
    """Of a seed: a few parts in a hundred of what it is added to."""
    return 1 + 0.02 * np.cos(seed)


def levels(late=LATE, early=EARLY, seeds=SEEDS):
    """Test errors by level."""
    rows = [
        (seed, step, level, DENSITY[level], error)
        for seed in range(seeds)
        for step, errors in ((0, early), (10, late))
        for level, error in enumerate(errors)
    ]
    columns = ["seed", "rewind_step", "level", "density", "test_error"]
    return pd.DataFrame(rows, columns=columns).assign(chance=0.9)


def controls(error=0.3, barrier=0.5, seeds=SEEDS):
    """At level 2, IMP matches behind no barrier; the controls have this error and barrier."""
    kinds = ["imp", "random", "shuffled", "reinitialized", "one-shot"]
    table = pd.DataFrame({"kind": kinds}).assign(test_error=error, barrier=barrier)
    table.loc[table.kind == "imp", ["test_error", "barrier"]] = 0.045, 0.0
    table = table.assign(level=2, density=DENSITY[2], previous_error=0.04)
    table = table.merge(pd.DataFrame({"seed": range(seeds)}), how="cross")
    others = table.kind != "imp"
    table.loc[others, ["test_error", "barrier"]] *= noise(table[others].seed).to_numpy()[:, None]
    return table
