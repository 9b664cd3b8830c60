"""All sources in a cone as one table: what Simple Cone Search answers with, nearest to the axis first.

How much it says of each is the VERB of the protocol: 1 the three columns that it must have, 2 what one looks at first,
3 everything, magnitudes included. Positions, ids and distances are those of `explore.cone`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from redshelf.indexing.filters import near, nearest_first
from redshelf.models.errors import BadInput
from redshelf.service import listing, tables
from redshelf.service.explore import MAX_CONE_ARCSEC
from redshelf.service.search import check_position
from redshelf.service.shelf import OpenShelf
from redshelf.service.sources import iau_name

MAX_RADIUS_DEG = MAX_CONE_ARCSEC / 3600
MAXREC, MOST_RECORDS = 10_000, 100_000  # where a client does not say, and whatever it says
BY_VERB = {
    1: ("source_id", "ra_deg", "dec_deg"),
    2: ("source_id", "iau_name", "separation_arcsec", "ra_deg", "dec_deg", "z_spec", "z_phot", "object_class"),
}


@dataclass(frozen=True)
class ConeTable:
    """The first sources of a cone, and whether there are more."""

    table: pa.Table
    overflow: bool


def _magnitudes(shelf: OpenShelf, rows: np.ndarray[tuple[int], np.dtype[np.int64]], table: pa.Table) -> pa.Table:
    for number, band in enumerate(shelf.info.bands):
        told = {"unit": "mag", "ucd": "phot.mag", "says": f"AB magnitude in {band.name}, {band.wavelength_nm:g} nm"}
        field = pa.field(f"magnitude_{band.name}", pa.float64(), metadata=told)
        values = shelf.columns["magnitudes"][rows, number].astype(np.float64)
        table = table.append_column(field, pa.array(values, mask=~np.isfinite(values)))
    return table


def table(
    shelf: OpenShelf, ra_deg: float, dec_deg: float, radius_deg: float, *, verb: int = 2, maxrec: int = MAXREC
) -> ConeTable:
    """At most `maxrec` sources within `radius_deg`, which may be 0 for none; `BadInput` for what is out of range."""
    check_position(ra_deg, dec_deg)
    if not 0 <= radius_deg <= MAX_RADIUS_DEG:
        raise BadInput(f"SR={radius_deg}: expected 0 <= SR <= {MAX_RADIUS_DEG:g} degrees")
    if verb not in (1, 2, 3):
        raise BadInput(f"VERB={verb}: expected 1, 2 or 3")
    wanted = min(maxrec, MOST_RECORDS)
    rows, separation = np.empty(0, np.int64), np.empty(0)
    if radius_deg > 0 and wanted > 0:
        rows, separation = near(shelf.columns, ra_deg, dec_deg, radius_deg * 3600)
    first = nearest_first(separation, wanted)
    overflow, rows = len(rows) > wanted, rows[first]
    columns = listing.told(shelf, rows)
    columns["separation_arcsec"] = separation[first].tolist()
    if verb > 1:
        places = zip(columns["ra_deg"], columns["dec_deg"], strict=True)
        columns["iau_name"] = [iau_name(ra, dec) for ra, dec in places]
    kept = {name: values for name, values in columns.items() if name in BY_VERB.get(verb, columns)}
    found = tables.make(kept, {"survey": shelf.info.survey, "generation": shelf.generation.number})
    return ConeTable(_magnitudes(shelf, rows, found) if verb == 3 else found, overflow)
