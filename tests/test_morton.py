"""Places on a map as numbers, the pixels of tiles, and what lies in a polygon, against brute force."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.path import Path as Outline

from redshelf.indexing import morton, polygon, pyramid
from redshelf.indexing.pyramid import How, Pyramid, Values
from redshelf.models.errors import BadInput

N = 4000


def scattered(n: int = N, *, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Sorted keys of a clump, a line, a heap on one spot, and the corners of the map."""
    rng = np.random.default_rng(seed)
    clump = rng.normal(0.4, 0.03, (n // 2, 2))
    line = np.column_stack([rng.random(n // 4), np.full(n // 4, 0.75)])
    heap = np.full((n - n // 2 - n // 4 - 4, 2), 0.9)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    return np.sort(morton.keys_of(np.concatenate([clump, line, heap, corners])))


def pixels_of(keys: npt.NDArray[np.uint64], zoom: int, x: int, y: int) -> npt.NDArray[np.int64]:
    """The pixel of each source in a tile, row * 256 + column, -1 outside: by plain arithmetic on positions."""
    at = np.floor(morton.positions_of(keys) * 256 * 2**zoom).astype(np.int64) - np.array([256 * x, 256 * y])
    inside = ((at >= 0) & (at < 256)).all(axis=1)
    return np.where(inside, 256 * at[:, 1] + at[:, 0], -1)


def test_a_position_comes_back_to_half_a_step_and_its_number_is_interleaved_bits() -> None:
    points = np.random.default_rng(1).random((500, 2))
    keys = morton.keys_of(points)
    assert np.abs(morton.positions_of(keys) - points).max() <= 2.0**-25
    for key, (x, y) in zip(keys.tolist(), np.floor(points * 2**24).astype(int).tolist(), strict=True):
        assert key == sum(((x >> i & 1) << 2 * i) | ((y >> i & 1) << 2 * i + 1) for i in range(24))


def test_what_lies_on_the_far_sides_of_the_map_is_on_it() -> None:
    keys = morton.keys_of(np.array([[1.0, 1.0], [0.0, 0.0], [2.0, -1.0]]))
    assert keys.tolist() == [2**48 - 1, 0, sum(1 << 2 * i for i in range(24))]


@pytest.mark.parametrize(
    ("tile", "words"),
    [((17, 0, 0), "z=17"), ((-1, 0, 0), "z=-1"), ((2, 4, 0), "x=4: expected 0 <= x < 4"), ((2, 0, -1), "y=-1")],
)
def test_a_tile_that_there_is_not_is_refused(tile: tuple[int, int, int], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        morton.check_tile(*tile)


@pytest.mark.parametrize("light", [10**9, 300, 0])
def test_the_pixels_of_every_tile_are_counted_as_one_by_one(monkeypatch: pytest.MonkeyPatch, light: int) -> None:
    monkeypatch.setattr(pyramid, "LIGHT", light)
    monkeypatch.setattr(pyramid, "MAX_ZOOM", 6)
    keys = scattered()
    values = np.random.default_rng(2).normal(0, 1, (2, N)).astype(np.float32)
    values[0, ::3], values[1] = np.nan, values[1] > 0
    hows: dict[str, How] = {"a": "median", "b": "share"}

    def values_of(name: str, at: slice) -> Values:
        return values[list(hows).index(name), at]

    found = Pyramid(keys, np.arange(N), pyramid.build(keys, hows, values_of))
    assert len(found.levels) == {10**9: 0, 300: 7, 0: 7}[light]  # the heap is heavy at any zoom
    for zoom in range(7):
        filled = {(int(x), int(y)) for x, y in np.floor(morton.positions_of(keys) * 2**zoom)}
        for x, y in [*sorted(filled)[:40], (0, 2**zoom - 1)]:
            at = pixels_of(keys, zoom, x, y)
            for name, how in hows.items():
                tile = found.tile(zoom, x, y, values_of, colour=name, how=how)
                assert np.array_equal(np.sort(tile.at), np.unique(at[at >= 0]))
                counts = np.zeros(65536, int)
                counts[tile.at] = tile.counts
                assert np.array_equal(counts, np.bincount(at[at >= 0], minlength=65536))
                assert tile.values is not None
                for pixel, value in zip(tile.at[:50], tile.values[:50], strict=True):
                    own = values[list(hows).index(name)][at == pixel]
                    own = own[np.isfinite(own)]
                    summed = np.median if how == "median" else np.mean
                    np.testing.assert_allclose(value, summed(own) if len(own) else np.nan, rtol=1e-6)


def test_medians_of_groups_are_those_of_numpy_with_negative_zero_and_infinite_values() -> None:
    values = np.array([3, -1, -0.0, 0.0, np.nan, 5, 5, -np.inf, -7, -8, 1e-40], dtype=np.float32)
    group = np.array([0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 4])
    found = pyramid.summarise(group, 6, values, "median")
    np.testing.assert_array_equal(found, np.array([1, 0, np.nan, 5, -7, np.nan], dtype=np.float32))


def test_the_scale_of_a_zoom_ends_with_its_fuller_pixels() -> None:
    keys = np.sort(morton.keys_of(np.array([[0.1, 0.1]] * 7 + [[0.9, 0.9]])))
    assert pyramid.peaks(keys) == [6] * 17  # the quantile 0.999 of 1 and 7, as a whole number


def star(n: int, *, seed: int) -> list[tuple[float, float]]:
    """A simple polygon with `n` corners, far from convex."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.random(n)) * 2 * math.pi
    radii = rng.uniform(0.05, 0.45, n)
    return [(0.45 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_a_polygon_holds_the_sources_that_matplotlib_says(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(polygon, "FEW", (1, 7, 64)[seed % 3])
    keys = scattered(seed=seed)
    corners = star((3, 5, 17, 60, 200, 500)[seed], seed=seed)
    chosen = polygon.choose(keys, polygon.polygon(corners))
    expected = np.flatnonzero(Outline(corners).contains_points(morton.positions_of(keys)))
    assert chosen.total == len(expected)
    assert np.array_equal(chosen.spread(N), expected)
    if len(expected) > 10:
        some = chosen.spread(10)
        assert len(set(some.tolist())) == 10 and set(some.tolist()) <= set(expected.tolist())
        assert np.array_equal(some, expected[(2 * np.arange(10) + 1) * len(expected) // 20])


def test_a_box_holds_what_lies_between_its_sides() -> None:
    keys = scattered()
    points = morton.positions_of(keys)
    chosen = polygon.choose(keys, polygon.box(0.38, 0.3, 0.77, 1.5))
    expected = np.flatnonzero((points > [0.38, 0.3]).all(axis=1) & (points < [0.77, 1]).all(axis=1))
    assert np.array_equal(chosen.spread(N), expected)
    assert polygon.choose(keys, polygon.box(0, 0, 1, 1)).total == N


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        ([(0.1, 0.1), (0.2, 0.2)], "2 different corners: expected 3 or more"),
        ([(0.1, 0.1), (0.1, 0.1), (0.2, 0.2), (0.1, 0.1)], "2 different corners"),
        ([], "0 different corners"),
        ([(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)], "crosses itself"),
        ([(0.0, 0.0), (0.5, 0.0), (0.25, 0.0), (0.3, 0.4)], "crosses itself"),
        ([(0.0, 0.0), (0.5, 0.0), (1.0, 0.0)], "crosses itself"),
        ([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.0), (0.0, 1.0)], "touches itself"),
        ([(0.0, 0.0), (1.0, 0.0), (1.0, math.nan)], "corner at"),
        ([(0.0, 0.0), (1.0, 0.0), (1.0, math.inf)], "corner at"),
        ([(0.0, 0.0), (1.1, 0.0), (1.0, 1.0)], r"corner at \(1.1, 0\)"),
        ([(0.5, 0.5)] * 501, "501 corners: expected at most 500"),
    ],
)
def test_what_is_no_simple_polygon_is_refused(corners: list[tuple[float, float]], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        polygon.polygon(corners)


def test_a_polygon_may_be_closed_by_its_first_corner_and_have_corners_on_a_line() -> None:
    square = [(0.2, 0.2), (0.5, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8), (0.2, 0.2)]
    assert len(polygon.polygon(square).corners) == 5
