"""A photo-z for every source, as lines of one file: the numbers that `service/redshift` answers with, one for one.

A source of which no redshift is given has null (in FITS and HDF5 NaN) for every z, and why among its `reasons`: words
in Parquet, bits of a number in FITS and HDF5, explained there. The densities are in HDF5 alone, as `qp` reads them.
`service/outputs` writes the file.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import joining
from redshelf.indexing.outputs import Table
from redshelf.models import support
from redshelf.service.fields import PERCENT, field
from redshelf.service.redshift import REASONS, calibration, choose, estimate, is_refused, judge, numbers
from redshelf.service.shelf import OpenRedshift, OpenShelf

FORMATS = ("parquet", "fits", "hdf5")
POINTS = ("z_median", "z_mode", "z_q16", "z_q84", "z_q025", "z_q975")
CONFORMAL = tuple(f"conformal_{side}_{percent}" for percent in PERCENT for side in ("low", "high"))
SUPPORT = support.NUMBERS
BITS = "\n".join(f"{1 << bit} is {reason}" for bit, reason in enumerate(REASONS))


def _told(shelf: OpenShelf, fit: OpenRedshift, estimator: str) -> dict[str, Any]:
    trust, shift = calibration(fit, estimator), fit.model.shift
    return {
        "survey": shelf.info.survey,
        "generation": shelf.generation.number,
        "encoder": fit.published.encoder,
        "revision": fit.revision,
        "estimator": estimator,
        "n_neighbours": fit.model.knn.k,
        "calibration_method": trust.method,
        "calibration_pit_ks": trust.pit_ks,
        "calibration_coverage_68": trust.coverage_68,
        "calibration_coverage_95": trust.coverage_95,
        "calibration_effective_sample_size": trust.effective_sample_size,
        "shift_method": shift.method,
        "shift_effective_sample_size": shift.effective_sample_size,
    }


def _schema(format: str, told: dict[str, Any], edges: npt.NDArray[np.float64]) -> pa.Schema:
    names = ("source_id", "ra_deg", "dec_deg", *POINTS, *CONFORMAL, "in_support", "reasons", *SUPPORT, "z_spec")
    reasons = (
        field("reasons", pa.list_(pa.string())) if format == "parquet" else field("reasons", pa.int32(), says=BITS)
    )
    fields = [reasons if name == "reasons" else field(name) for name in names]
    if format == "hdf5":
        list_of = pa.list_(pa.float32(), len(edges) - 1)
        fields.append(pa.field(joining.PDF, list_of, metadata={"edges": json.dumps(edges.tolist())}))
    return pa.schema(fields, metadata={joining.key(name): str(value) for name, value in told.items()})


def _words(flags: npt.NDArray[np.bool_]) -> pa.Array:
    """Flags (N, reasons) as a list of words for each source."""
    at = np.concatenate([[0], np.cumsum(flags.sum(axis=1))])
    words = pa.DictionaryArray.from_arrays(pa.array(np.nonzero(flags)[1], pa.int8()), pa.array(REASONS))
    return pa.ListArray.from_arrays(pa.array(at, pa.int32()), words.cast(pa.string()))


def table(shelf: OpenShelf, *, encoder: str | None, estimator: str | None, format: str) -> Table:
    """The lines of every source that is not deleted, in the order of rows, by one estimator on one fit.

    None takes the default ones; labelled sources are answered without themselves. Memory is 4 bytes a source, and about
    20 kB for each of `outputs.LINES_AT_ONCE`. Raises `NotFound` for an unknown fit or estimator.
    """
    fit, name = choose(shelf, encoder, estimator)
    columns, edges = shelf.columns, fit.model.knn.edges
    rows = np.flatnonzero(~columns["deleted"]).astype(np.int32)
    told = _told(shelf, fit, name)
    schema = _schema(format, told, edges)

    def lines(first: int, past: int) -> pa.RecordBatch:
        own = rows[first:past].astype(np.int64)
        prediction = estimate(fit, own, estimator=name)
        flags = np.column_stack([judge(shelf, fit, own), prediction.support.flags])
        refused = is_refused(flags)
        found: dict[str, Any] = {
            "source_id": [bytes(source_id).decode() for source_id in columns["ids"][own]],
            "ra_deg": columns["ra"][own],
            "dec_deg": columns["dec"][own],
            **{name: pa.array(z, mask=refused | np.isnan(z)) for name, z in numbers(fit, prediction).items()},
            "in_support": ~flags.any(axis=1),
            "reasons": _words(flags) if format == "parquet" else flags @ (1 << np.arange(len(REASONS))),
            **{part: getattr(prediction.support, part) for part in SUPPORT},
            "z_spec": pa.array(columns["z_spec"][own].astype(np.float64), from_pandas=True),
        }
        if format == "hdf5":
            density = np.where(refused[:, None], np.nan, prediction.pdf.density).astype(np.float32)
            found[joining.PDF] = pa.FixedSizeListArray.from_arrays(pa.array(density.reshape(-1)), density.shape[1])
        arrays = [v if isinstance(v, pa.Array) else pa.array(v, schema.field(n).type) for n, v in found.items()]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    facts = {"encoder": fit.published.encoder, "revision": fit.revision, "k": None, "estimator": name}
    return Table(schema, len(rows), facts, lines)
