"""Planes through three networks: closed forms in a toy space, and states that agree with the segments."""

import numpy as np
import pytest
import torch

from unmask import landscape, measure, networks
from unmask.barriers import interpolate
from unmask.chains import Runs
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.landscape import across, axial_trace, plane
from unmask.train import evaluate


def point(*weights, bias=0.0, running_var=1.0):
    return {"w": torch.tensor(weights), "bias": torch.tensor([bias]), "running_var": torch.tensor([running_var])}


def mask(*kept):
    return {"w": torch.tensor(kept, dtype=torch.bool)}


@pytest.fixture
def runs(smoke_store):
    return Runs(experiment("smoke"), smoke_store)


def test_coordinates_of_a_known_triangle():
    # legs 3 and 4 along two axes, from (1, 1, 1)
    a, b, c = point(1.0, 1.0, 1.0), point(4.0, 1.0, 1.0), point(4.0, 5.0, 1.0)
    surface = plane(a, b, c, ("w",))
    for state, expected in ((a, (0, 0)), (b, (3, 0)), (c, (3, 4))):
        assert surface.coordinates(state) == pytest.approx(expected)
    assert surface.coordinates(point(1.0, 2.0, 9.0)) == pytest.approx((0, 1))  # the nearest point of the plane
    torch.testing.assert_close(surface.state(-1, 2)["w"], torch.tensor([0.0, 3.0, 1.0]))


def test_what_is_no_weight_does_not_count_in_lengths_but_moves_along():
    a, b, c = point(0.0, 0.0, bias=1.0), point(2.0, 0.0, bias=101.0), point(0.0, 5.0, bias=1.0)
    surface = plane(a, b, c, ("w",))
    assert surface.coordinates(b) == pytest.approx((2, 0))
    assert float(surface.state(1, 4)["bias"]) == pytest.approx(51)


def test_statistics_are_interpolated_but_not_extrapolated():
    surface = plane(point(0.0, 0.0, running_var=1.0), point(1.0, 0.0, running_var=0.2), point(0.0, 1.0), ("w",))
    for (x, y), expected in (((0.5, 0), 0.6), ((1, 0), 0.2), ((3, 0), 0.2), ((-3, 9), 1.0)):
        assert float(surface.state(x, y)["running_var"]) == pytest.approx(expected)
    torch.testing.assert_close(surface.state(3, -1)["w"], torch.tensor([3.0, -1.0]))


def test_the_three_networks_come_back(runs):
    for kind in landscape.PLANES:
        points, _ = landscape.corners(runs, 0, 5, kind)
        surface = plane(*points.values(), tuple(runs.dense_mask))
        for state in points.values():
            again = surface.state(*surface.coordinates(state))
            for name in state:
                torch.testing.assert_close(again[name], state[name], rtol=1e-5, atol=1e-6)


def test_along_a_side_states_are_those_of_barriers(runs):
    points, _ = landscape.corners(runs, 0, 0, "solutions")
    surface = plane(*points.values(), tuple(runs.dense_mask))
    middle = interpolate(points["level"], points["next level"], 0.3)
    again = surface.state(*surface.coordinates(middle))
    for name in middle:
        torch.testing.assert_close(again[name], middle[name], rtol=1e-4, atol=1e-6)


def test_distances_are_those_of_weight_space(runs):
    points, _ = landscape.corners(runs, 1, 5, "solutions")
    surface = plane(*points.values(), tuple(runs.dense_mask))
    at = {name: np.array(surface.coordinates(state)) for name, state in points.items()}
    for one, other in (("level", "next level"), ("level", "projection"), ("projection", "next level")):
        distance = sum(float(((points[one][n] - points[other][n]).double() ** 2).sum()) for n in runs.dense_mask) ** 0.5
        assert np.linalg.norm(at[one] - at[other]) == pytest.approx(distance, rel=1e-6)


@pytest.mark.parametrize("b, c, said", [
    (point(1.0, 1.0), point(2.0, 2.0), "collinear"),
    (point(1.0, 1.0), point(-3.0, -3.0), "collinear"),
    (point(0.0, 0.0), point(2.0, 1.0), "two of these have the same"),
    (point(2.0, 1.0), point(0.0, 0.0, bias=7.0), "two of these have the same"),
    (point(2.0, 1.0), point(2.0, 1.0), "collinear"),
])
def test_networks_that_span_no_plane_are_refused(b, c, said):
    with pytest.raises(UnmaskError, match=said) as caught:
        plane(point(0.0, 0.0), b, c, ("w",))
    assert "\n" not in str(caught.value)


def test_axial_trace_of_a_known_plane():
    # the third weight is 1 at a, 0 at b and c: it vanishes on the line through b and c
    a, b, c = point(0.0, 0.0, 1.0), point(3.0, 0.0, 0.0), point(0.0, 2.0, 0.0)
    surface = plane(a, b, c, ("w",))
    at, direction = axial_trace(surface, mask(True, True, False))
    assert np.linalg.norm(direction) == pytest.approx(1)
    for step in (-2.0, 0.0, 5.0):
        assert abs(float(surface.state(*(at + step * direction))["w"][2])) < 1e-5
    for corner in (b, c):
        away = np.array(surface.coordinates(corner)) - at
        assert abs(away[0] * direction[1] - away[1] * direction[0]) < 1e-9  # on the line


def test_axial_trace_that_is_no_line():
    a, b, c = point(1.0, 1.0, 1.0), point(2.0, 1.0, 1.0), point(1.0, 2.0, 1.0)
    surface = plane(a, b, c, ("w",))
    assert axial_trace(surface, mask(False, False, True)) is None  # one point, where both weights are zero
    assert axial_trace(surface, mask(True, False, False)) is None  # nowhere: the third weight is 1 on all the plane
    for kept in ((True, True, True), (True, True, False)):
        with pytest.raises(UnmaskError, match="no line to draw"):
            axial_trace(surface, mask(*kept))


@pytest.mark.parametrize("kind", landscape.PLANES)
def test_the_trace_lies_in_the_next_levels_subspace(runs, kind):
    points, kept = landscape.corners(runs, 0, 5, kind)
    surface = plane(*points.values(), tuple(runs.dense_mask))
    at, direction = axial_trace(surface, kept)
    for step in (-3.0, 0.0, 8.0):
        state = surface.state(*(at + step * direction))
        assert max(float(state[name][~part].abs().max()) for name, part in kept.items() if not part.all()) < 1e-6
    first, second = list(points.values())[:2]
    for state in (first, second):
        away = np.array(surface.coordinates(state)) - at
        assert abs(away[0] * direction[1] - away[1] * direction[0]) < 1e-6


def test_lines_end_at_the_frame():
    low, high = np.array([0.0, 0.0]), np.array([4.0, 2.0])
    np.testing.assert_allclose(across(np.array([1.0, 1.0]), np.array([1.0, 0.0]), low, high), [[0, 1], [4, 1]])
    np.testing.assert_allclose(across(np.array([0.5, 0.5]), np.array([-0.6, -0.6]), low, high), [[2, 2], [0, 0]])
    assert len(across(np.array([1.0, 5.0]), np.array([1.0, 0.0]), low, high)) == 0


def test_the_table_holds_the_grid_the_lines_and_the_networks(runs):
    e = runs.experiment
    table = measure.table("landscape", e, runs.store, 1)
    assert set(table.seed) == {0} and set(table.rewind_step) == {0, 5} and set(table.plane) == set(landscape.PLANES)
    for (step, kind), here in table.groupby(["rewind_step", "plane"]):
        counts = here.what.value_counts()
        assert counts["grid"] == 49 and counts["segment"] == e.barrier_points and counts["axial subspace"] == 2
        points, _ = landscape.corners(runs, 0, step, kind)
        for name, state in points.items():
            networks.load_state(runs.network, state)
            (error,) = here[here.what == name].test_error
            assert error == pytest.approx(evaluate(runs.network, runs.data.test).error, abs=2 / e.test_samples)
            (spot,) = here[here.what == name][["x", "y"]].to_numpy()
            on_grid = here[(here.what == "grid") & np.isclose(here.x, spot[0]) & np.isclose(here.y, spot[1])]
            assert on_grid.test_error.item() == pytest.approx(error, abs=2 / e.test_samples)


def test_the_segment_is_that_of_the_segments_table(runs):
    e = runs.experiment
    planes, segments = (measure.table(name, e, runs.store, 1) for name in ("landscape", "segments"))
    ours = planes[(planes.what == "segment") & (planes.plane == "solutions")]
    theirs = segments[(segments.norms == "interpolated") & (segments.seed == 0)]
    both = ours.merge(theirs, on=["rewind_step", "level", "next_level", "t"])
    assert len(both) == len(ours) == 2 * e.barrier_points
    assert (both.test_error_x - both.test_error_y).abs().max() <= 2 / e.test_samples


def test_one_rewind_step_is_pictured_once(store):
    assert measure._all_keys(experiment("smoke", rewind_steps=[5]), "landscape") == [
        (0, 5, "solutions"), (0, 5, "rewind points")]
