"""A survey's catalogue, checked and in redshelf's own units: fluxes in microjansky, dereddened, offsets applied.

`read(survey)` takes FITS, VOTable, ECSV, CSV or Parquet, only the columns that the survey file names, and refuses what
would be wrong later: a missing column, a duplicate id, a position off the sky. `passes`, `classes`, `ids` and
`positions` serve label catalogues too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.store import FLAG_MASKED
from redshelf.indexing.survey import BandSection, ClassRange, Cut, ObjectClass, Survey, as_list
from redshelf.indexing.tables import Bools, Columns, Floats, numbers, read_columns
from redshelf.models.bands import ab_to_flux, states
from redshelf.models.errors import BadInput

ID_PATTERN = "^[A-Za-z0-9._:+-]{1,64}$"
HEALPIX_ORDER = 29
Z_MIN, Z_MAX = -0.01, 20.0  # beyond, a redshift is none
UNITS_UJY = {"uJy": 1.0, "nJy": 1e-3, "Jy": 1e6, "erg/s/cm2/Hz": 1e29}
MAGNITUDE_TO_FRACTION = 0.4 * np.log(10)  # relative flux error of a magnitude error


@dataclass(frozen=True)
class Catalogue:
    """N sources in B bands, in the order of the file (rows that were cut are gone)."""

    source_id: npt.NDArray[np.bytes_]  # (N,) unique
    ra_deg: Floats  # (N,) [0, 360)
    dec_deg: Floats  # (N,) [-90, 90]
    healpix29: npt.NDArray[np.int64]  # (N,) nested, order 29
    flux_ujy: npt.NDArray[np.float32]  # (N, B) dereddened, offsets applied; NaN where not observed
    flux_error_ujy: npt.NDArray[np.float32]  # (N, B)
    state: npt.NDArray[np.int8]  # (N, B) models.bands.State
    object_class: npt.NDArray[np.str_]  # (N,) galaxy, star, agn, unknown
    flags: npt.NDArray[np.int32]  # (N,) indexing.store.FLAG_*
    ebv: npt.NDArray[np.float32]  # (N,) NaN where the catalogue has none
    size_arcsec: npt.NDArray[np.float32]  # (N,) likewise
    z_reference: npt.NDArray[np.float32]  # (N,) likewise
    z_references: npt.NDArray[np.float32]  # (N, R) likewise, in the order of the survey file's z_references
    file_row: npt.NDArray[np.int64]  # (N,) 0-based row in the file, those that were cut counted

    def __len__(self) -> int:
        return len(self.source_id)

    def take(self, rows: npt.NDArray[np.integer]) -> Catalogue:
        """The same sources in another order, or fewer of them."""
        return Catalogue(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def ids(values: npt.NDArray[Any], *, column: str) -> npt.NDArray[np.bytes_]:
    """Source ids as they stand, integers as decimal text; `BadInput` naming the first that is no valid id.

    Integers stored as doubles (as LePHARE does) are taken where nothing is lost: none missing, all below 2^53."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if values.dtype.kind == "f" and values.dtype.itemsize == 8 and bool((np.abs(values) < 2**53).all()):
        whole = values.astype(np.int64)
        values = whole if bool((whole == values).all()) else values
    if values.dtype.kind not in "iuU":
        raise BadInput(f"column {column!r} holds {values.dtype} values: ids are integers or text, none missing")
    texts = values.astype(str)
    fits = pc.match_substring_regex(pa.array(texts), ID_PATTERN).to_numpy(zero_copy_only=False)
    if not fits.all():
        raise BadInput(f"column {column!r}: the id {str(texts[~fits][0])!r} does not match {ID_PATTERN}")
    return texts.astype(np.bytes_)


def _as_stored(values: Sequence[Any], column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values of a survey file in the precision of a column of floats: -99.9 stored as float32 is not the float64."""
    with np.errstate(over="ignore"):  # beyond the column's range is infinite, which no value of it is
        return np.asarray(values, dtype=column.dtype if column.dtype.kind == "f" else None)


def _passing(columns: Columns, cut: Cut) -> Bools:
    """(N,) True where a row passes one cut, compared in the column's own precision; a missing value does not."""
    values = columns[cut.column]
    keep = np.ones(len(values), dtype=bool)
    wanted: Any = cut.value if isinstance(cut.value, list) else [cut.value]
    textual = values.dtype.kind == "U"
    if any(isinstance(w, str) != textual for w in wanted):
        raise BadInput(f"cut on {cut.column!r}: its values are {'text' if textual else 'numbers'}, not {cut.value!r}")
    if textual:
        keep = values != ""
    elif cut.modulo is not None or cut.floor:
        values = numbers(columns, cut.column)
        keep = np.isfinite(values)
        values = values if cut.modulo is None else np.mod(values, cut.modulo)
        values = np.floor(values) if cut.floor else values
    elif values.dtype.kind == "f":
        keep = np.isfinite(values)
        wanted = _as_stored(wanted, values)
    if cut.operator in ("in", "not in"):
        return keep & np.isin(values, wanted, invert=cut.operator == "not in")
    compare = {
        "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
        "==": np.equal, "!=": np.not_equal,
    }[cut.operator]  # fmt: skip
    return np.asarray(keep & compare(values, wanted[0]))


def passes(columns: Columns, cuts: Sequence[Cut]) -> Bools:
    """(N,) True where a row passes every cut."""
    return apply(columns, cuts)[0]


def apply(columns: Columns, cuts: Sequence[Cut]) -> tuple[Bools, dict[str, int]]:
    """`passes`, and how many rows each cut removed of those that the cuts before it had left."""
    keep = np.ones(len(next(iter(columns.values()))), dtype=bool)
    removed: dict[str, int] = {}
    for cut in cuts:
        passing = _passing(columns, cut)
        removed[str(cut)] = removed.get(str(cut), 0) + int((keep & ~passing).sum())
        keep &= passing
    return keep, removed


def classes(
    columns: Columns, name: str | None, values: dict[str, ObjectClass], ranges: Sequence[ClassRange], *, count: int
) -> npt.NDArray[np.str_]:
    """(N,) object class of each row: by value, else by range, else "unknown"."""
    out = np.full(count, "unknown", dtype="U7")
    if name is None:
        return out
    column = columns[name]
    for span in ranges:
        number = numbers(columns, name)
        out[(number >= span.low) & (number < span.high)] = span.object_class
    if values:
        whole = column.dtype.kind == "f" and bool((np.mod(column[np.isfinite(column)], 1) == 0).all())
        known, inverse = np.unique(column, return_inverse=True)
        texts = [str(int(v)) if whole and np.isfinite(v) else str(v) for v in known]
        for position, text in enumerate(texts):
            if text in values:
                out[inverse == position] = values[text]
    return out


def positions(columns: Columns, ra: str, dec: str, source_id: npt.NDArray[Any], *, path: Path) -> tuple[Floats, Floats]:
    """RA and Dec in degrees; `BadInput` naming the first source that is not on the sky."""
    out = []
    for name, low, high in ((ra, 0.0, 360.0), (dec, -90.0, 90.0)):
        values = numbers(columns, name)
        good = np.isfinite(values) & (values >= low) & (values < high if name == ra else values <= high)
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            shown = source_id[first].decode() if isinstance(source_id[first], bytes) else str(source_id[first])
            expected = f"{low:g} <= {name} {'<' if name == ra else '<='} {high:g} degrees"
            raise BadInput(
                f"{path.name}: {name}={values[first]} of {shown} (row {first} after cuts), "
                f"{int((~good).sum())} such rows: expected {expected}"
            )
        out.append(values)
    return out[0], out[1]


def unit_vectors(ra_deg: Floats, dec_deg: Floats) -> Floats:
    """(N, 3) points on the unit sphere; the chord of an angle a is 2 sin(a / 2)."""
    ra, dec = np.deg2rad(ra_deg), np.deg2rad(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def healpix29(ra_deg: npt.ArrayLike, dec_deg: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Nested HEALPix index at order 29 (pixels of 0.0004 arcsec): the spatial sort key."""
    from astropy import units as u
    from astropy_healpix import lonlat_to_healpix

    lon, lat = np.asarray(ra_deg) * u.deg, np.asarray(dec_deg) * u.deg
    return np.asarray(lonlat_to_healpix(lon, lat, 2**HEALPIX_ORDER, order="nested"), dtype=np.int64)


def _first_valid(band: BandSection, columns: Columns) -> tuple[Floats, Floats]:
    """The first valid value of the band's columns with its own error, in the columns' unit; NaN where there is none."""
    names, errors = band.photometry_columns, band.error_columns
    if len(errors) == 1:
        errors = errors * len(names)
    low, high = band.valid_range or (-np.inf, np.inf)
    value = np.full(len(columns[names[0]]), np.nan)
    error = value.copy()
    for position, name in enumerate(names):
        found = numbers(columns, name)
        missing = np.isin(columns[name], _as_stored(band.missing, columns[name]))
        take = np.isnan(value) & np.isfinite(found) & ~missing & (found >= low) & (found <= high)
        value[take] = found[take]
        if errors:
            error[take] = numbers(columns, errors[position])[take]
    return value, np.where(error > 0, error, np.nan)


def photometry(band: BandSection, columns: Columns, ebv: Floats) -> tuple[Floats, Floats]:
    """Flux and error in microjansky, (N,), dereddened, offsets applied; NaN where the band did not observe a source.

    A missing aperture correction makes the flux unknown too. Errors of dereddened fluxes scale with them.
    """
    value, error = _first_valid(band, columns)
    if band.magnitude is not None:
        flux = ab_to_flux(value).astype(np.float64)
        flux_error = flux * MAGNITUDE_TO_FRACTION * error
    else:
        scale = ab_to_flux(band.zero_point) if band.zero_point is not None else UNITS_UJY[band.unit or "uJy"]
        flux, flux_error = value * scale, error * scale
    if band.default_error is not None:
        given = np.abs(flux) * MAGNITUDE_TO_FRACTION * band.default_error
        flux_error = np.where(np.isfinite(flux_error), flux_error, given)
    shift = np.full(len(flux), band.zero_point_offset)
    if band.aperture_to_total is not None:
        offset = columns[band.aperture_to_total]
        lost = np.isin(offset, _as_stored(band.missing, offset))
        shift += np.where(lost, np.nan, numbers(columns, band.aperture_to_total))
    if band.extinction and not band.dereddened:
        shift -= band.extinction * ebv
    factor = 10.0 ** (-0.4 * shift)
    flux, flux_error = flux * factor, np.hypot(flux_error * factor, band.error_floor * flux * factor)
    observed = np.isfinite(flux) & np.isfinite(flux_error) & (flux_error > 0)
    return np.where(observed, flux, np.nan), np.where(observed, flux_error, np.nan)


def _names(survey: Survey) -> list[str]:
    """Every column that the survey file asks of the catalogue, E(B-V) apart, which may go by several names."""
    c = survey.catalogue
    names = [c.id, c.ra, c.dec, c.object_class, c.size_arcsec, c.z_reference, *c.z_references.values()]
    names += [*c.mask_flags, *c.saturation_flags, *(cut.column for cut in c.cuts)]
    for band in survey.bands:
        names += [*band.photometry_columns, *band.error_columns, band.saturated, band.aperture_to_total]
    return [name for name in names if name is not None]


def _refuse_duplicates(source_id: npt.NDArray[np.bytes_], *, path: Path) -> None:
    ordered = np.sort(source_id)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice):
        raise BadInput(f"{path.name}: the id {twice[0].decode()!r} stands more than once ({len(twice)} such ids)")


def _reddening(columns: Columns, name: str | None, source_id: npt.NDArray[np.bytes_], *, path: Path) -> Floats:
    if name is None:
        return np.full(len(source_id), np.nan)
    ebv = numbers(columns, name)
    bad = ~(np.isfinite(ebv) & (ebv >= 0))
    if bad.any():
        raise BadInput(
            f"{path.name}: {name}={ebv[bad][0]} of {source_id[bad][0].decode()}: expected a finite E(B-V) >= 0"
        )
    return ebv


def read(survey: Survey) -> tuple[Catalogue, dict[str, int]]:
    """The survey's catalogue, and how many rows each of its cuts removed.

    Raises `BadInput` with the file, the column or id, and what was expected.
    """
    section = survey.catalogue
    path = survey.resolve(section.path)
    reddening = as_list(section.ebv)
    either = [reddening] if reddening else []
    columns = read_columns(
        path, _names(survey), alternatives=either, format=section.format, hdu=section.hdu, text=[section.id]
    )
    total = len(columns[section.id])
    keep, removed = apply(columns, section.cuts)
    if not keep.any():
        raise BadInput(f"{path.name}: none of its {total} rows passes the cuts of the survey file")
    columns = {name: values[keep] for name, values in columns.items()}
    source_id = ids(columns[section.id], column=section.id)
    count = len(source_id)
    _refuse_duplicates(source_id, path=path)
    ra, dec = positions(columns, section.ra, section.dec, source_id, path=path)
    ebv = _reddening(columns, next((name for name in reddening if name in columns), None), source_id, path=path)

    def any_flag(names: Iterable[str]) -> Bools:
        set_ = np.zeros(count, dtype=bool)
        for name in names:
            set_ |= numbers(columns, name) != 0  # a missing flag is NaN, and counts as set
        return set_

    def optional(name: str | None) -> npt.NDArray[np.float32]:
        return (np.full(count, np.nan) if name is None else numbers(columns, name)).astype(np.float32)

    # the first is z_reference; beyond the limits (-99 and the like) there is none
    redshifts = np.stack([optional(name) for name in (section.z_reference, *section.z_references.values())], axis=1)
    redshifts[~((redshifts >= Z_MIN) & (redshifts <= Z_MAX))] = np.nan
    shape = (count, len(survey.bands))
    flux, error = np.full(shape, np.nan, dtype=np.float32), np.full(shape, np.nan, dtype=np.float32)
    state = np.zeros(shape, dtype=np.int8)
    saturated = any_flag(section.saturation_flags)
    for b, band in enumerate(survey.bands):
        if not band.photometry_columns:
            continue
        with np.errstate(over="ignore"):
            flux[:, b], error[:, b] = photometry(band, columns, ebv)
        in_band = saturated | any_flag([band.saturated] if band.saturated else [])
        state[:, b] = states(flux[:, b], error[:, b], saturated=in_band)
    catalogue = Catalogue(
        source_id=source_id,
        ra_deg=ra,
        dec_deg=dec,
        healpix29=healpix29(ra, dec),
        flux_ujy=flux,
        flux_error_ujy=error,
        state=state,
        object_class=classes(columns, section.object_class, section.class_values, section.class_ranges, count=count),
        flags=np.where(any_flag(section.mask_flags), FLAG_MASKED, 0).astype(np.int32),
        ebv=ebv.astype(np.float32),
        size_arcsec=optional(section.size_arcsec),
        z_reference=redshifts[:, 0],
        z_references=redshifts[:, 1:],
        file_row=np.flatnonzero(keep),
    )
    return catalogue, removed
