"""The picture: planes through three networks in closed form, states that agree with the segments,
and captions from hand-made tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import E, levels

import unmask
from unmask import networks, pruning, tables
from unmask.barriers import interpolate
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.findings import landscape
from unmask.findings.landscape import corners, plane
from unmask.lab import Lab
from unmask.train import evaluate

BOTH = pytest.mark.parametrize("kind", landscape.PLANES)


def point(*weights, bias=0.0, running_var=1.0):
    return {
        "w": torch.tensor(weights),
        "bias": torch.tensor([bias]),
        "running_var": torch.tensor([running_var]),
    }


@pytest.fixture
def lab(smoke_store):
    return Lab(experiment("smoke"), smoke_store)


def table(lab, name):
    return unmask.table(name, lab.experiment, lab.store, 1)


def spanned(lab, seed, step, kind):
    """The three networks and the plane through them."""
    points = corners(lab, seed, step, kind)
    return points, plane(*points.values(), tuple(lab.dense_mask))


def test_coordinates_of_a_known_triangle():
    # legs 3 and 4 along two axes, from (1, 1, 1)
    a, b, c = point(1.0, 1.0, 1.0), point(4.0, 1.0, 1.0), point(4.0, 5.0, 1.0)
    surface = plane(a, b, c, ("w",))
    for state, expected in ((a, (0, 0)), (b, (3, 0)), (c, (3, 4))):
        assert surface.coordinates(state) == pytest.approx(expected)
    # the nearest point of the plane
    assert surface.coordinates(point(1.0, 2.0, 9.0)) == pytest.approx((0, 1))
    torch.testing.assert_close(surface.state(-1, 2)["w"], torch.tensor([0.0, 3.0, 1.0]))


def test_what_is_no_weight_does_not_count_in_lengths_but_moves_along():
    a, b, c = point(0.0, 0.0, bias=1.0), point(2.0, 0.0, bias=101.0), point(0.0, 5.0, bias=1.0)
    surface = plane(a, b, c, ("w",))
    assert surface.coordinates(b) == pytest.approx((2, 0))
    assert float(surface.state(1, 4)["bias"]) == pytest.approx(51)


def test_statistics_are_interpolated_but_not_extrapolated():
    a, b = point(0.0, 0.0, running_var=1.0), point(1.0, 0.0, running_var=0.2)
    surface = plane(a, b, point(0.0, 1.0), ("w",))
    for (x, y), expected in (((0.5, 0), 0.6), ((1, 0), 0.2), ((3, 0), 0.2), ((-3, 9), 1.0)):
        assert float(surface.state(x, y)["running_var"]) == pytest.approx(expected)
    torch.testing.assert_close(surface.state(3, -1)["w"], torch.tensor([3.0, -1.0]))


@BOTH
def test_the_three_networks_come_back(lab, kind):
    points, surface = spanned(lab, 0, 5, kind)
    for state in points.values():
        again = surface.state(*surface.coordinates(state))
        for name in state:
            torch.testing.assert_close(again[name], state[name], rtol=1e-5, atol=1e-6)


def test_along_a_side_states_are_those_of_barriers(lab):
    points, surface = spanned(lab, 0, 0, "solutions")
    middle = interpolate(points["level"], points["next level"], 0.3)
    again = surface.state(*surface.coordinates(middle))
    for name in middle:
        torch.testing.assert_close(again[name], middle[name], rtol=1e-4, atol=1e-6)


def test_distances_are_those_of_weight_space(lab):
    points, surface = spanned(lab, 1, 5, "solutions")
    at = {name: np.array(surface.coordinates(state)) for name, state in points.items()}
    sides = ("level", "next level"), ("level", "projection"), ("projection", "next level")
    weights = {name: pruning.surviving(points[name], lab.dense_mask) for name in points}
    for one, other in sides:
        distance = np.linalg.norm(weights[one] - weights[other])
        assert np.linalg.norm(at[one] - at[other]) == pytest.approx(distance, rel=1e-6)


@pytest.mark.parametrize(
    "b, c, said",
    [
        (point(1.0, 1.0), point(2.0, 2.0), "do not lie on one line"),
        (point(1.0, 1.0), point(-3.0, -3.0), "do not lie on one line"),
        (point(2.0, 1.0), point(2.0, 1.0), "do not lie on one line"),
        (point(0.0, 0.0), point(2.0, 1.0), "two of these have the same"),
        (point(2.0, 1.0), point(0.0, 0.0, bias=7.0), "two of these have the same"),
    ],
)
def test_networks_that_span_no_plane_are_refused(b, c, said):
    with pytest.raises(UnmaskError, match=said) as caught:
        plane(point(0.0, 0.0), b, c, ("w",))
    assert "\n" not in str(caught.value)


@BOTH
@pytest.mark.parametrize("step", [0, 5])
def test_the_first_axis_is_what_plane_and_next_axial_subspace_have_in_common(lab, kind, step):
    points, surface = spanned(lab, 0, step, kind)
    mask = lab.level(0, step, lab.experiment.levels // 2 + 1).mask
    pruned = {name: ~kept for name, kept in mask.items()}

    def away(x, y):
        """How far a state is from the subspace: the norm of its pruned weights."""
        return np.linalg.norm(pruning.surviving(surface.state(x, y), pruned))

    spots = np.array([surface.coordinates(state) for state in points.values()])
    assert np.abs(spots[:2, 1]).max() < 1e-6 and spots[2, 1] > 0.1
    for x in (-3.0, *spots[:, 0], 8.0):
        assert away(x, 0) < 1e-6
        # and as far as it is from the axis, of which y is the distance in weights
        for y in (-0.5, 0.01, spots[2, 1]):
            assert away(x, y) == pytest.approx(abs(y), rel=1e-3)


def test_the_table_holds_the_grid_the_lines_and_the_networks(lab):
    e, rows = lab.experiment, table(lab, "landscape")
    assert set(rows.seed) == {0} and set(rows.rewind_step) == {0, 5}
    assert set(rows.plane) == set(landscape.PLANES)
    close = 2 / e.test_samples
    for (step, kind), here in rows.groupby(["rewind_step", "plane"]):
        counts = here.what.value_counts()
        assert counts["grid"] == 49 and counts["segment"] == e.barrier_points
        for name, state in corners(lab, 0, step, kind).items():
            networks.load_state(lab.network, state)
            (spot,) = here[here.what == name].itertuples()
            error = evaluate(lab.network, lab.data.test).error
            assert spot.test_error == pytest.approx(error, abs=close)
            on_grid = np.isclose(here.x, spot.x) & np.isclose(here.y, spot.y)
            (again,) = here[(here.what == "grid") & on_grid].test_error
            assert again == pytest.approx(spot.test_error, abs=close)
        # the axial subspace runs from one side of the frame to the other
        grid, line = here[here.what == "grid"], here[here.what == "axial subspace"]
        assert line.x.tolist() == pytest.approx([grid.x.min(), grid.x.max()])
        assert line.y.tolist() == [0, 0]
        spots = here[here.what.isin(list(corners(lab, 0, step, kind)))]
        assert line.x.iloc[0] < spots.x.min() and spots.x.max() < line.x.iloc[1]


def test_the_frame_leaves_the_same_margin_on_all_sides():
    low, high = landscape.frame(np.array([(0.0, 0.0), (4.0, 0.0), (1.0, 2.0)]))
    margin = 4 * landscape.MARGIN
    assert low.tolist() == [-margin, -margin] and high.tolist() == [4 + margin, 2 + margin]


def test_the_segment_is_that_of_the_segments_table(lab):
    e, planes, segments = lab.experiment, table(lab, "landscape"), table(lab, "segments")
    ours = planes[(planes.what == "segment") & (planes.plane == "solutions")]
    theirs = segments[(segments.norms == "interpolated") & (segments.seed == 0)]
    both = ours.merge(theirs, on=["rewind_step", "level", "next_level", "t"])
    assert len(both) == len(ours) == 2 * e.barrier_points
    assert (both.test_error_x - both.test_error_y).abs().max() <= 2 / e.test_samples


def test_one_rewind_step_is_pictured_once():
    parts = tables.TABLES["landscape"].parts(experiment("smoke", rewind_steps=[5]))
    assert [part.keys for part in parts] == [(0, 5, "solutions"), (0, 5, "rewind points")]


# What captions say, from hand-made tables


def test_the_pictured_pair_is_connected_by_its_segment():
    """The error half-way from level 1 to 2 of seed 0 is high from step 0, and not from step 10."""
    table, segments = levels(seeds=1), []
    for step, half in {0: 0.7, 10: 0.04}.items():
        errors = table[table.rewind_step == step].test_error
        for t, error in ((0.0, errors.iloc[1]), (0.5, half), (1.0, errors.iloc[2])):
            segments.append((0, step, 1, 2, "solutions", "segment", t, error))
    keys = ["seed", "rewind_step", "level", "next_level"]
    columns = [*keys, "plane", "what", "t", "test_error"]
    tables = {"levels": table, "landscape": pd.DataFrame(segments, columns=columns)}
    found = landscape.plane_barriers(tables, E).set_index("rewind_step")
    assert found.barrier.tolist() == pytest.approx([0.59, 0.0025])
    assert found.connected.tolist() == found.matching.tolist() == [False, True]
