"""Figures: the same look for the same thing."""

import pandas as pd
from hand_made import E

from unmask.plots import by_step, styles


def test_a_rewind_step_has_the_same_style_whichever_steps_are_shown():
    e = E.but(rewind_steps=(0, 10, 20))

    def looks(*steps):
        table = pd.DataFrame({"rewind_step": steps, "level": range(len(steps))})
        return {label: (style, rows.level.tolist()) for label, style, rows in by_step(table, e)}

    everything = looks(0, 10, 20, 10)
    assert list(everything) == [f"rewound to step {step}" for step in e.rewind_steps]
    assert [rows for _, rows in everything.values()] == [[0], [1, 3], [2]]
    for some in ((20,), (10, 20), (0, 20)):
        for label, (style, _) in looks(*some).items():
            assert style == everything[label][0]


def test_styles_tell_many_curves_apart_in_color_or_dashes():
    looks = [
        (*style["color"], style["marker"], style["ls"]) for style in styles(range(28)).values()
    ]
    assert len(set(looks)) == 28
