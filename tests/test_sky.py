"""Cutouts and photometry as they are drawn, and what is said in words: bars, limits, errors, times."""

from __future__ import annotations

from dataclasses import replace
from math import log10
from urllib.parse import parse_qs, urlsplit

import pytest

from redshelf.api import elsewhere, sky, words
from redshelf.service.answers import Photometry
from redshelf.service.shelf import OpenShelf


def band(name: str, state: str, flux: float | None, error: float | None) -> Photometry:
    return Photometry.model_validate(
        {"band": name, "state": state, "flux_ujy": flux, "flux_error_ujy": error, "magnitude_ab": None}
    )


@pytest.mark.parametrize(("scale", "arcsec"), [(0.2, 2), (0.05, 0.5), (1.0, 10), (0.01, 0.128)])
def test_a_scale_bar_is_a_round_length_of_at_most_two_fifths(shelf: OpenShelf, scale: float, arcsec: float) -> None:
    frame = sky.frame(replace(shelf.info, pixel_scale_arcsec=scale))
    assert frame is not None and shelf.info.cutout_px == frame.size == 32
    assert frame.arcsec == pytest.approx(arcsec) and frame.bar == pytest.approx(arcsec / scale)


def test_a_survey_of_unknown_scale_has_no_bar(shelf: OpenShelf) -> None:
    assert sky.frame(replace(shelf.info, pixel_scale_arcsec=float("nan"))) is None


def test_each_state_of_a_band_is_drawn_as_what_it_is() -> None:
    given = [
        band("u", "not_observed", None, None),
        band("g", "not_detected", -0.1, 0.1),
        band("r", "measured", 10.0, 1.0),
        band("i", "saturated", 100.0, 1.0),
    ]
    drawn = sky.sed(given, [370, 480, 620, 770])
    assert drawn is not None
    unseen, limit, measured, saturated = drawn.points
    assert [one.kind for one in drawn.points] == ["unseen", "limit", "measured", "saturated"]
    assert saturated.y < measured.y < limit.y < unseen.y  # brighter is higher
    per_mag = (measured.y - saturated.y) / 2.5  # a factor of ten
    assert (limit.y - measured.y) / per_mag == pytest.approx(-2.5 * log10(0.3 / 10), rel=1e-6)
    assert (measured.low - measured.y) / per_mag == pytest.approx(0.1144, abs=1e-3)
    xs = [one.x for one in drawn.points]
    assert xs == sorted(xs) and drawn.left < xs[0] and xs[-1] < drawn.right


def test_a_source_without_any_flux_has_no_drawing() -> None:
    assert sky.sed([band("g", "not_observed", None, None), band("r", "not_detected", 0.1, None)], [480, 620]) is None
    assert sky.limits([band("g", "not_observed", None, None), band("r", "measured", 9.0, 1 / 3)]) == {
        "g": None,
        "r": pytest.approx(23.9),
    }


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.14912, 0.00874, "0.1491 ± 0.0087"),
        (91.2, 0.069, "91.200 ± 0.069"),
        (1234.5, 120.0, "1234 ± 120"),
        (3.14159, None, "3.14"),
    ],
)
def test_a_value_has_as_many_decimals_as_its_error(value: float, error: float | None, said: str) -> None:
    assert words.measured(value, error) == said


def test_times_have_two_digits() -> None:
    assert [words.milliseconds(ms) for ms in (0.654, 9.96, 27.3, 994.0, 1400.0)] == [
        "0.65 ms",
        "10 ms",
        "27 ms",
        "994 ms",
        "1.4 s",
    ]


def test_links_to_other_services_name_the_place() -> None:
    found = elsewhere.links(150.125, -2.25)
    assert [name for name, _, _ in found] == ["SIMBAD", "NED", "Legacy Survey", "ESASky", "Aladin"]
    for _, address, _ in found:
        assert address.startswith("https://") and "150.125000" in address and "2.250000" in address
    assert parse_qs(urlsplit(found[0][1]).query)["Coord"] == ["150.125000 -2.250000"]


@pytest.mark.security
def test_what_is_copied_quotes_whatever_the_host_header_says() -> None:
    hostile = "http://x';rm -rf ~;'\"/"
    assert "'\"'\"'" in elsewhere.curl(hostile, "a+b", "vit")  # how a shell is given a quote
    assert "a%2Bb" in elsewhere.curl(hostile, "a+b", "vit")
    compile(elsewhere.python(hostile, "a+b", "vit"), "copied", "exec")
