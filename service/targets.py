"""`redshelf targets`: the unlabelled galaxies whose spectra would lower the error of the next redshift fit most.

They are chosen on one published fit, for all sources that are to be given a redshift, among those that pass the limits
of the observation. `models/acquisition` says how; what it expects to gain is told beside what as many sources at random
would. It knows nothing of whether a spectrum will succeed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import generation, tabular
from redshelf.indexing.columns import KINDS
from redshelf.indexing.files import write_bytes
from redshelf.indexing.filters import Filters, row_mask
from redshelf.indexing.layout import Layout
from redshelf.models import acquisition
from redshelf.models.errors import BadInput, Conflict, NotFound, nearest
from redshelf.service.fit import LABEL_KINDS
from redshelf.service.listing import told
from redshelf.service.redshift import choose, estimate, judge
from redshelf.service.shelf import OpenRedshift, OpenShelf, open_shelf
from redshelf.service.tables import make

MAX_N = 10_000
SAMPLE = 20_000  # of the sources to be answered for, and of those that may be chosen, where there are more
ENDINGS = {f".{format.ending}": format for format in tabular.FORMATS.values()}
LISTED = ("source_id", "ra_deg", "dec_deg", "z_phot", "object_class")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """The sources in the order of choice, and what was asked, looked at and expected."""

    table: pa.Table
    facts: dict[str, Any]


def open_for(root: Path, encoder: str | None = None, number: int | None = None) -> OpenShelf:
    """A published generation with the encoders of one fit; with all of them where the fit is unknown, so that the
    error can say which there are."""
    published = generation.read(Layout(root), number)
    name = encoder or published.default_redshift
    known = name is not None and name in [fit.encoder for fit in published.redshifts]
    return open_shelf(root, published.number, encoders=name.split("+") if name and known else None)


def targets(
    shelf: OpenShelf,
    n: int = 500,
    *,
    encoder: str | None = None,
    mag_band: str | None = None,
    mag_max: float | None = None,
    ra: float | None = None,
    dec: float | None = None,
    radius_arcsec: float | None = None,
    seed: int = 0,
) -> Targets:
    """At most `n` unlabelled galaxies to observe, best first, on the fit of `encoder` (None: the default one).

    Neither stars, AGN, masked, deleted nor labelled sources; with `mag_max` none fainter than that in `mag_band` (by
    default the reference band of photometry: i, or what is nearest to it), with `ra`, `dec` [deg] and `radius_arcsec`
    none outside that cone. Fewer where fewer pass. Raises `BadInput` for n, a band or limits out of range, `NotFound`
    where no fit is published or nothing passes.
    """
    if not 1 <= n <= MAX_N:
        raise BadInput(f"n={n}: expected 1 <= n <= {MAX_N}")
    bands = shelf.info.band_names
    if mag_band is not None and mag_band not in bands:
        raise BadInput(f"band {mag_band!r} is not in this survey; {nearest(mag_band, bands)}")
    band = mag_band or shelf.info.reference_band
    limits = Filters(
        mag_band=None if mag_band is None and mag_max is None else band,
        mag_max=mag_max,
        ra=ra,
        dec=dec,
        radius_arcsec=radius_arcsec,
    )
    fit, estimator = choose(shelf, encoder, None)
    wanted = _unlabelled(shelf, fit)
    passes = row_mask(shelf.columns, limits, bands=bands)
    among = wanted if passes is None else wanted[passes[wanted]]
    if not len(among):
        asked = {"mag_band": limits.mag_band, "mag_max": mag_max, "ra": ra, "dec": dec, "radius_arcsec": radius_arcsec}
        said = ", ".join(f"{name}={value}" for name, value in asked.items() if value is not None)
        within = f"; none of {len(wanted)} passes {said}" if said else ""
        raise NotFound(f"no galaxy without a label that {fit.published.encoder} has seen{within}")
    seen, candidates = _sample(wanted, seed), _sample(among, seed + 1)
    model = fit.model
    found = acquisition.choose(
        model.knn.bank,
        np.expm1(model.knn.log1pz),
        model.companions,
        model.frame.transform(fit.features(seen)),
        acquisition.expected_error(estimate(fit, seen, estimator=estimator).pdf),
        model.frame.transform(fit.features(candidates)),
        n,
        seed=seed,
    )
    rows = candidates[found.candidates]
    gain, by_chance = found.error - found.after, found.error - found.at_random
    facts = {
        "survey": shelf.info.survey,
        "generation": shelf.generation.number,
        "encoder": fit.published.encoder,
        "revision": fit.revision,
        "estimator": estimator,
        "n": len(rows),
        "n_matching": len(among),
        "n_targets": len(wanted),
        "n_labels": len(model.knn.bank),
        "expected_error": found.error,
        "expected_gain_of_all": gain,
        "expected_gain_at_random": by_chance,
        "mag_band": band,
        "mag_max": mag_max,
        "ra": ra,
        "dec": dec,
        "radius_arcsec": radius_arcsec,
    }
    listed = told(shelf, rows)
    columns = {
        "rank": list(range(1, len(rows) + 1)),
        **{name: listed[name] for name in LISTED},
        "magnitude": _known(shelf.columns["magnitudes"][rows, bands.index(band)]),
        "expected_gain": found.gain.tolist(),
    }
    return Targets(make(columns, facts), facts)


def _unlabelled(shelf: OpenShelf, fit: OpenRedshift) -> Ints:
    """Rows that are to be given a redshift and have no spectrum."""
    columns = shelf.columns
    rows = np.flatnonzero(~columns["deleted"]).astype(np.int64)
    kinds = [number for number, kind in enumerate(KINDS) if kind in LABEL_KINDS]
    spectrum = np.isin(columns["z_kind"][rows], kinds) & np.isfinite(columns["z_spec"][rows])
    rows = rows[~spectrum & ~np.isin(rows, fit.label_rows)]
    return rows[~judge(shelf, fit, rows).any(axis=1)]


def _sample(rows: Ints, seed: int) -> Ints:
    if len(rows) <= SAMPLE:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, SAMPLE, replace=False))


def _known(values: npt.NDArray[np.floating]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def check_path(path: Path) -> None:
    """`BadInput` for an ending that no table has and a folder that is not there, `Conflict` for a file that is."""
    if path.suffix not in ENDINGS:
        raise BadInput(f"{path.name}: unknown ending {path.suffix!r}; {nearest(path.suffix, ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path}: there is no folder {path.parent}")
    if path.exists():
        raise Conflict(f"{path} is there already: remove it, or give another name")


def write(path: Path, found: Targets) -> None:
    """Write the sources as Parquet, FITS, VOTable or CSV, by the ending of `path`, whole or not at all."""
    check_path(path)
    write_bytes(path, ENDINGS[path.suffix].write(found.table))
