"""Filters of a search as typed values, turned into a boolean row mask over the memory-mapped columns.

No text of a user ever reaches a query language: a filter is a column name from this file and a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from redshelf.indexing.columns import CLASSES, Columns
from redshelf.models.errors import BadInput, nearest


@dataclass(frozen=True)
class Filters:
    """None: not asked. `z_*` act on z_phot, `z_spec_*` on labels; a source without the value never passes."""

    z_min: float | None = None
    z_max: float | None = None
    z_spec_min: float | None = None
    z_spec_max: float | None = None
    mag_band: str | None = None
    mag_min: float | None = None
    mag_max: float | None = None
    ra: float | None = None
    dec: float | None = None
    radius_arcsec: float | None = None
    tile: str | None = None
    observed_band: str | None = None
    object_class: str | None = None
    labelled_only: bool = False
    exclude_radius_arcsec: float | None = None  # around the query: drops duplicates and shredded galaxies

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not isfinite(value):
                raise BadInput(f"{name}={value}: expected a finite number")
        for low, high in (("z_min", "z_max"), ("z_spec_min", "z_spec_max"), ("mag_min", "mag_max")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise BadInput(f"{low}={least} is above {high}={most}")
        if self.mag_band is None and (self.mag_min is not None or self.mag_max is not None):
            raise BadInput("mag_min and mag_max need mag_band")
        if len({self.ra is None, self.dec is None, self.radius_arcsec is None}) > 1:
            raise BadInput("a cone needs ra, dec and radius_arcsec together")
        if self.ra is not None and not 0 <= self.ra < 360:
            raise BadInput(f"ra={self.ra}: expected 0 <= ra < 360 degrees")
        if self.dec is not None and not -90 <= self.dec <= 90:
            raise BadInput(f"dec={self.dec}: expected -90 <= dec <= 90 degrees")
        for name in ("radius_arcsec", "exclude_radius_arcsec"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 180 * 3600:
                raise BadInput(f"{name}={value}: expected 0 < {name} <= 648000 arcsec")
        if self.object_class is not None and self.object_class not in CLASSES:
            raise BadInput(f"object_class={self.object_class!r}; {nearest(self.object_class, CLASSES)}")


def separation_arcsec(
    ra_deg: npt.NDArray[np.float64], dec_deg: npt.NDArray[np.float64], ra0_deg: float, dec0_deg: float
) -> npt.NDArray[np.float64]:
    """Great-circle distance of each position to one, in arcsec (haversine: exact when small, right at the poles)."""
    ra, dec, ra0, dec0 = np.radians(ra_deg), np.radians(dec_deg), np.radians(ra0_deg), np.radians(dec0_deg)
    half = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin((ra - ra0) / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))) * 3600)


def _beside(
    ra_deg: npt.NDArray[np.float64], ra0_deg: float, dec0_deg: float, radius_deg: float
) -> npt.NDArray[np.bool_]:
    """Which right ascensions (n,) a cone that holds no pole reaches at all: much less work than distances."""
    sine = min(1.0, np.sin(np.radians(radius_deg)) / np.cos(np.radians(dec0_deg)))
    reach = np.degrees(np.arcsin(sine)) + 1e-5  # by which the arc sine near 1 is wrong, and some more
    low, high = ra0_deg - reach, ra0_deg + reach
    inside = (ra_deg >= low) & (ra_deg <= high)
    if low < 0:
        inside |= ra_deg >= low + 360
    if high >= 360:
        inside |= ra_deg <= high - 360
    return np.asarray(inside)


def nearest_first(distance: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.int64]:
    """Positions of the `n` smallest of `distance` (N,), smallest first, of equal ones the first; the rest is not
    sorted."""
    if not 0 < n < len(distance):
        return np.argsort(distance, kind="stable")[: max(n, 0)]
    some = np.flatnonzero(distance <= np.partition(distance, n - 1)[n - 1])
    return some[np.argsort(distance[some], kind="stable")[:n]]


def near(
    columns: Columns, ra_deg: float, dec_deg: float, radius_arcsec: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows (n,) of the sources within a cone, and their distances [arcsec] from its axis; only those at these
    declinations are looked at, and no deleted one."""
    half = radius_arcsec / 3600 * (1 + 1e-9) + 1e-9
    first, past = np.searchsorted(columns["dec_sorted"], [dec_deg - half, dec_deg + half])
    rows = np.asarray(columns["dec_order"][first:past])
    if abs(dec_deg) + half < 90:  # else it holds a pole, and with it every right ascension
        rows = rows[_beside(np.asarray(columns["ra"])[rows], ra_deg, dec_deg, half)]
    distance = separation_arcsec(np.asarray(columns["ra"])[rows], np.asarray(columns["dec"])[rows], ra_deg, dec_deg)
    inside = distance <= radius_arcsec
    return rows[inside], distance[inside]


def _between(values: npt.NDArray[np.floating], low: float | None, high: float | None) -> npt.NDArray[np.bool_]:
    passed = np.asarray(np.isfinite(values))
    with np.errstate(over="ignore"):  # a limit beyond float32 is one that all pass, or none
        if low is not None:
            passed = passed & (values >= low)
        if high is not None:
            passed = passed & (values <= high)
    return passed


def row_mask(columns: Columns, filters: Filters, *, bands: tuple[str, ...]) -> npt.NDArray[np.bool_] | None:
    """Rows that pass every filter but `exclude_radius_arcsec`, (N,) bool; None where none is set."""
    masks: list[npt.NDArray[np.bool_]] = []
    if filters.z_min is not None or filters.z_max is not None:
        masks.append(_between(columns["z_phot"], filters.z_min, filters.z_max))
    if filters.z_spec_min is not None or filters.z_spec_max is not None:
        masks.append(_between(columns["z_spec"], filters.z_spec_min, filters.z_spec_max))
    for name in (filters.mag_band, filters.observed_band):
        if name is not None and name not in bands:
            raise BadInput(f"band {name!r} is not in this survey; {nearest(name, bands)}")
    if filters.mag_band is not None:
        magnitude = columns["magnitudes"][:, bands.index(filters.mag_band)]
        masks.append(_between(magnitude, filters.mag_min, filters.mag_max))
    if filters.observed_band is not None:
        masks.append(columns["states"][:, bands.index(filters.observed_band)] > 0)
    if filters.ra is not None and filters.dec is not None and filters.radius_arcsec is not None:
        inside = np.zeros(len(columns["ra"]), dtype=bool)
        inside[near(columns, filters.ra, filters.dec, filters.radius_arcsec)[0]] = True
        masks.append(inside)
    if filters.tile is not None:
        named = columns["tile"] == np.bytes_(filters.tile.encode("utf-8", "replace"))
        masks.append(named & (not filters.tile.endswith("\0")))  # which numpy does not count
    if filters.object_class is not None:
        masks.append(columns["object_class"] == CLASSES.index(filters.object_class))
    if filters.labelled_only:
        masks.append(np.isfinite(columns["z_spec"]))
    return np.asarray(np.logical_and.reduce(masks)) if masks else None
