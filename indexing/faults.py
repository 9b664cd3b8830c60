"""What can be wrong in the tables of a shelf and in the arrays made of them: functions that yield one line a fault.

Rows are streamed, whatever their number: a scan holds some batches of `BATCH_BYTES`, and of all rows together at most
16 bytes each, for the ids. A kind of fault is told once, with the number of its rows and the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from redshelf.indexing import ann
from redshelf.indexing.batches import photometry, photometry_columns
from redshelf.indexing.catalogue import HEALPIX_ORDER, ID_PATTERN, healpix29, unit_vectors
from redshelf.indexing.columns import CLASSES, KINDS, LOOK_UP, Columns
from redshelf.indexing.deletions import WHY
from redshelf.indexing.flat import Flat
from redshelf.indexing.store import list_values, same_rows
from redshelf.models.errors import BadInput

Lines = Generator[str, None, None]
Indexed = tuple[str, Flat, int]
Bools = npt.NDArray[np.bool_]
Visible = Callable[[npt.NDArray[np.int64]], Bools]
Progress = Callable[[int], object]

BATCH_BYTES, BATCH_ROWS = 1 << 22, 65_536
READ_AHEAD_BYTES = 1 << 24  # of Lance, which may hold 2 GB by default
SEEN_ROWS = 256  # whose pixels are looked at together
SUSPECTS = 10_000  # ids that are compared in full, of those with equal hashes
EXPONENT, MAGNITUDE = 0x7C00, 0x7FFF  # of a float16
HEALPIX_CHORD = 5e-9  # 0.001 arcsec: a pixel is 0.0004, and another machine may round to its neighbour

# column of a generation -> column of `sources`, alike to the bit
ALIKE = {"ra": "ra_deg", "dec": "dec_deg", "ebv": "ebv", "flags": "flags", "z_reference": "z_reference"}
TEXTS = {"ids": "source_id", "tile": "tile"}


class Tally:
    """Rows at fault, by kind."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, what: str, wrong: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
        """Count the `rows` (n,) where `wrong` (n,) holds."""
        if wrong.any():
            count, first = self._found.get(what, (0, int(rows[int(np.argmax(wrong))])))
            self._found[what] = (count + int(wrong.sum()), first)

    def lines(self, name: str) -> Iterator[str]:
        for what, (count, first) in self._found.items():
            more = f" and {count - 1} more" if count > 1 else ""
            yield f"{name}: {what}: row {first}{more}"


def scan(
    dataset: Any, columns: Sequence[str], *, row_bytes: int, progress: Progress
) -> Generator[tuple[npt.NDArray[np.int64], pa.RecordBatch], None, None]:
    """Positions (n,) and batch, in order; `row_bytes` is what a row takes in memory."""
    lacks = [column for column in columns if column not in dataset.schema.names]
    if lacks:
        raise BadInput(f"no column {lacks[0]!r}")
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
    batches = dataset.scanner(
        columns=list(columns), batch_size=rows, batch_readahead=2, fragment_readahead=1,
        io_buffer_size=READ_AHEAD_BYTES, scan_in_order=True,
    ).to_batches()  # fmt: skip
    position = 0
    for batch in batches:
        yield np.arange(position, position + len(batch)), batch
        position += len(batch)
        progress(len(batch))


def _integers(batch: pa.RecordBatch, column: str) -> npt.NDArray[np.int64]:
    """A column of integers; -1 where there is none."""
    return np.asarray(pc.fill_null(batch.column(column), -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _numbers(batch: pa.RecordBatch, column: str) -> npt.NDArray[Any]:
    return np.asarray(batch.column(column).to_numpy(zero_copy_only=False))


def _texts(batch: pa.RecordBatch, column: str) -> npt.NDArray[np.bytes_]:
    """A column of texts as 64 bytes each, empty where there is none."""
    values = pc.fill_null(batch.column(column), "").cast(pa.binary())
    return np.asarray(values.to_numpy(zero_copy_only=False).astype("S64"))


def _count_up(tally: Tally, batch: pa.RecordBatch, at: npt.NDArray[np.int64]) -> None:
    tally.add("row != position", _integers(batch, "row") != at, at)


def positions(dataset: Any, name: str, *, progress: Progress) -> Lines:
    """Faults of a table of which only `row == position` is looked at (cutouts)."""
    tally = Tally()
    for at, batch in scan(dataset, ["row"], row_bytes=8, progress=progress):
        _count_up(tally, batch, at)
    yield from tally.lines(name)


def _hashes(ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint64]:
    """A hash of 64 bits of each id (n,), whose equality is only a suspicion."""
    mixed = np.zeros(len(ids), dtype=np.uint64)
    for word in np.ascontiguousarray(ids).view(np.uint64).reshape(len(ids), -1).T:
        mixed = (mixed ^ word) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return mixed


def _twice(dataset: Any, name: str, hashes: npt.NDArray[np.uint64], live: npt.NDArray[np.int64]) -> Lines:
    """A line where an id stands in two of the rows `live`."""
    hashes = hashes[live]
    ordered = np.sort(hashes)
    suspect = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    rows = live[np.flatnonzero(np.isin(hashes, suspect))[:SUSPECTS]] if len(suspect) else live[:0]
    if not len(rows):
        return
    ids = dataset.take(rows, columns=["source_id"]).column(0).to_numpy()
    known, counts = np.unique(ids.astype(str), return_counts=True)
    twice = known[counts > 1]
    if len(twice):
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        yield f"{name}: source id {str(twice[0])!r} stands more than once{more}"


def _off_the_sky(ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]) -> Bools:
    with np.errstate(invalid="ignore"):
        return np.asarray(~((ra >= 0) & (ra < 360) & (dec >= -90) & (dec <= 90)))


def _misplaced(
    ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64], pixel: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which positions do not lie in their pixel of order 29, or within 0.001 arcsec of its centre."""
    from astropy import units as u
    from astropy_healpix import healpix_to_lonlat

    wrong = pixel != healpix29(ra, dec)
    near = np.flatnonzero(wrong & (pixel >= 0) & (pixel < 12 * 4**HEALPIX_ORDER))
    if len(near):
        lon, lat = healpix_to_lonlat(pixel[near], 2**HEALPIX_ORDER, order="nested")
        apart = unit_vectors(lon.to_value(u.deg), lat.to_value(u.deg)) - unit_vectors(ra[near], dec[near])
        wrong[near] = np.linalg.norm(apart, axis=1) > HEALPIX_CHORD
    return np.asarray(wrong)


def sources(dataset: Any, name: str, *, deleted: Bools, progress: Progress) -> Lines:
    """Faults of the catalogue: rows, ids (an id may stand in rows that are deleted, and in one that is not),
    positions."""
    tally, hashes = Tally(), np.empty(dataset.count_rows(), dtype=np.uint64)
    for at, batch in scan(
        dataset, ["row", "source_id", "ra_deg", "dec_deg", "healpix29"], row_bytes=200, progress=progress
    ):
        _count_up(tally, batch, at)
        good = pc.fill_null(pc.match_substring_regex(batch.column("source_id"), ID_PATTERN), False)
        tally.add("source_id is no valid id", ~good.to_numpy(zero_copy_only=False), at)
        hashes[at] = _hashes(_texts(batch, "source_id"))
        ra, dec = (_numbers(batch, column) for column in ("ra_deg", "dec_deg"))
        lost = _off_the_sky(ra, dec)
        tally.add("ra_deg or dec_deg is no position", lost, at)
        misplaced = _misplaced(ra[~lost], dec[~lost], _integers(batch, "healpix29")[~lost])
        tally.add("healpix29 is not that of ra_deg and dec_deg", misplaced, at[~lost])
    yield from tally.lines(name)
    yield from _twice(dataset, name, hashes, np.flatnonzero(~deleted))


def _listed(tally: Tally, rows: npt.NDArray[np.int64], seen: Bools, *, what: str) -> npt.NDArray[np.int64]:
    """Those of `rows` that the catalogue has, told where it has not and where they are listed twice."""
    outside = (rows < 0) | (rows >= len(seen))
    tally.add(f"{what} outside the {len(seen)} sources", outside, rows)
    inside = rows[~outside]
    again = seen[inside]
    again[np.setdiff1d(np.arange(len(inside)), np.unique(inside, return_index=True)[1])] = True
    tally.add(f"more than one {what}", again, inside)
    seen[inside] = True
    return inside


def deleted(dataset: Any, name: str, *, sources: int, progress: Progress) -> Lines:
    """Faults of the list of deleted rows: rows of the catalogue, each once, and why."""
    tally, seen = Tally(), np.zeros(sources, dtype=bool)
    for _, batch in scan(dataset, ["row", "when", "why"], row_bytes=30, progress=progress):
        rows = _integers(batch, "row")
        _listed(tally, rows, seen, what="deletion")
        tally.add("when is no time", ~(np.nan_to_num(_numbers(batch, "when")) > 0), rows)
        strange = ~pc.is_in(batch.column("why"), pa.array(WHY)).to_numpy(zero_copy_only=False)
        tally.add(f"why is none of {', '.join(WHY)}", strange, rows)
    yield from tally.lines(name)


def labels(dataset: Any, name: str, *, deleted: Bools, progress: Progress) -> Lines:
    """Faults of the labels: rows of the catalogue that are not `deleted` (N,), one label each, with a redshift."""
    tally, seen = Tally(), np.zeros(len(deleted), dtype=bool)
    columns = ["row", "z_spec", "z_kind", "object_class"]
    for _, batch in scan(dataset, columns, row_bytes=100, progress=progress):
        rows = _integers(batch, "row")
        inside = _listed(tally, rows, seen, what="label")
        tally.add("label of a row that is deleted", deleted[inside], inside)
        tally.add("z_spec is not finite", ~np.isfinite(_numbers(batch, "z_spec")), rows)
        for column, known in (("z_kind", KINDS), ("object_class", CLASSES)):
            strange = ~pc.is_in(batch.column(column), pa.array(known)).to_numpy(zero_copy_only=False)
            tally.add(f"{column} is none of {', '.join(filter(None, known))}", strange, rows)
    yield from tally.lines(name)


def vectors(
    dataset: Any,
    name: str,
    *,
    index: Indexed | None,
    visible: Visible | None,
    progress: Progress,
) -> Lines:
    """Faults of an embedding: rows, and vectors that are finite, and zero only where nothing was observed.

    `index`: name, vectors and the number of indexed vectors of the index of this embedding, which must be the
    same to the bit; `visible` tells which of some rows have a band that the encoder sees, None where that is not known.
    """
    kind = dataset.schema.field("vector").type
    if not (pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16()):
        raise BadInput(f"column 'vector' holds {kind}: expected fixed-size lists of float16")
    tally, differing, zeros = Tally(), Tally(), 0
    for at, batch in scan(dataset, ["row", "vector"], row_bytes=2 * kind.list_size + 8, progress=progress):
        _count_up(tally, batch, at)
        column = batch.column("vector")
        lacking = column.is_null().to_numpy(zero_copy_only=False)
        tally.add("no vector", lacking, at)
        if lacking.any():
            at, column = at[~lacking], column.filter(pa.array(~lacking))
        bits = list_values(column).view(np.uint16)
        tally.add("vector is not finite", ((bits & EXPONENT) == EXPONENT).any(axis=1), at)
        zero = at[~(bits & MAGNITUDE).any(axis=1)]
        zeros += len(zero)
        for start in range(0, len(zero) if visible else 0, SEEN_ROWS):
            assert visible is not None
            some = zero[start : start + SEEN_ROWS]
            tally.add("vector is zero, and a band was observed", visible(some), some)
        if index is not None:
            differing.add(
                "vector is not that of the embedding", (index[1].take(at).view(np.uint16) != bits).any(axis=1), at
            )
    yield from tally.lines(name)
    if index is not None:
        yield from differing.lines(index[0])
        nonzero = dataset.count_rows() - zeros
        if index[2] != nonzero:
            yield f"{index[0]}: holds {index[2]} vectors, and {nonzero} of the embedding are not zero"


def index_facts(folder: Path, name: str, *, rows: int, dim: int, encoder: str, revision: str) -> Lines:
    """Where the manifest of an index contradicts its embedding of `rows` vectors."""
    told = ann.read_manifest(folder)
    expected = {"rows": rows, "dim": dim, "encoder": encoder, "revision": revision}
    for key, value in expected.items():
        if told.get(key) != value:
            again = f": run `redshelf index --encoder {encoder}`" if key == "rows" else ""
            yield f"{name}: its manifest says {key} {told.get(key)}, the embedding {value}{again}"


def _look_up(columns: Columns, name: str) -> Lines:
    """Faults of the look-ups by id and by declination: the values ascend, and the order says where each stands."""
    for what, values in (("ids", columns["ids"]), ("dec", columns["dec"])):
        ordered, order = columns[f"{what}_sorted"], columns[f"{what}_order"]
        tally, n = Tally(), len(ordered)
        for start in range(0, n, BATCH_ROWS):
            at = np.arange(start, min(start + BATCH_ROWS, n))
            some, rows = np.asarray(ordered[at]), np.asarray(order[at])
            after = np.asarray(ordered[start + 1 : at[-1] + 2])
            twice = some[: len(after)] >= after if what == "ids" else some[: len(after)] > after
            tally.add(f"{what}_sorted does not ascend", twice, at)
            outside = (rows < 0) | (rows >= len(values))
            tally.add(f"{what}_order lies outside the table", outside, at)
            differs = np.asarray(values[np.where(outside, 0, rows)]) != some
            tally.add(f"{what}_order is not where the {'id' if what == 'ids' else what} stands", differs & ~outside, at)
        yield from tally.lines(name)


def generation_columns(
    columns: Columns,
    name: str,
    *,
    sources: Any,
    labels: Any | None,
    deleted: Bools,
    bands: Sequence[str],
    progress: Progress,
) -> Lines:
    """Where the arrays of a generation contradict its tables (datasets; `labels` None where there is none), or the mask
    (N,) of its deleted rows."""
    n = sources.count_rows()
    needed = [*ALIKE, *TEXTS, *LOOK_UP, "deleted", "flux", "flux_error", "states", "z_spec"]
    unfit = [f"{name}/{key}.npy: missing" for key in needed if key not in columns]
    for key, values in columns.items():
        expected = n - int(deleted.sum()) if key in LOOK_UP else n
        if len(values) != expected:
            unfit.append(f"{name}/{key}.npy: {len(values)} rows, expected {expected}")
    if unfit:
        yield from unfit
        return
    yield from _look_up(columns, name)
    tally = Tally()
    tally.add("deleted is not as listed", np.asarray(columns["deleted"]) != deleted, np.arange(n))
    wanted = [*ALIKE.values(), *TEXTS.values(), *photometry_columns(bands)]
    for at, batch in scan(sources, list(dict.fromkeys(wanted)), row_bytes=200 + 9 * len(bands), progress=progress):
        measured = photometry(batch, bands)
        stored: Columns = {"flux": measured.flux_ujy, "flux_error": measured.flux_error_ujy, "states": measured.state}
        stored |= {key: _numbers(batch, column) for key, column in ALIKE.items()}
        stored |= {key: _texts(batch, column) for key, column in TEXTS.items()}
        for key, values in stored.items():
            tally.add(
                f"{key} is not that of the sources", ~same_rows(columns[key][at[0] : at[0] + len(at)], values), at
            )
    labelled = 0
    for _, batch in scan(labels, ["row", "z_spec"], row_bytes=12, progress=progress) if labels is not None else ():
        rows = _integers(batch, "row")
        inside = (rows >= 0) & (rows < n)
        known = columns["z_spec"][rows[inside]]
        tally.add(
            "z_spec is not that of the labels", ~same_rows(known, _numbers(batch, "z_spec")[inside]), rows[inside]
        )
        labelled += len(rows)
    found = sum(int(np.isfinite(columns["z_spec"][s : s + BATCH_ROWS]).sum()) for s in range(0, n, BATCH_ROWS))
    yield from tally.lines(name)
    if found != labelled:
        yield f"{name}: z_spec of {found} sources, and there are {labelled} labels"
