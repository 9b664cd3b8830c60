"""The columns of every table that redshelf writes: type, unit, UCD and what they say, told once.

Tables of answers (`service/tables`) and of whole surveys (`service/photoz`) take theirs from here; the UCDs are of the
IVOA's controlled vocabulary (UCD1+). Redshifts have no unit. The order is that of the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

REAL, TEXT = pa.float64(), pa.string()
PERCENT = (68, 95)


@dataclass(frozen=True)
class Field:
    """One column: `unit` as the VO writes it, `ucd` where a word of the vocabulary fits."""

    says: str
    ucd: str | None = None
    unit: str | None = None
    type: pa.DataType = REAL


_PHOT = "src.redshift.phot"
FIELDS: dict[str, Field] = {
    "query": Field("id of the source that was asked about", "meta.id", type=TEXT),
    "source_id": Field("id of the source in its survey", "meta.id;meta.main", type=TEXT),
    "iau_name": Field("position as a name, truncated as the IAU asks", "meta.id", type=TEXT),
    "encoder": Field("embedding space that the line is of", "meta.note", type=TEXT),
    "rank": Field("place in the list, from 1", "stat.rank", type=pa.int32()),
    "distance": Field("Euclidean, in the space of the encoder", "stat.value"),
    "score": Field("of the classifier, by which the list is ordered: 1 is positive", "stat.fit"),
    "separation_arcsec": Field("distance from the axis of the cone", "pos.angDistance", "arcsec"),
    "ra_deg": Field("right ascension, ICRS", "pos.eq.ra;meta.main", "deg"),
    "dec_deg": Field("declination, ICRS", "pos.eq.dec;meta.main", "deg"),
    "z_spec": Field("of the label, where there is one", "src.redshift"),
    "z_error": Field("of the label, as its catalogue gives it", "stat.error;src.redshift"),
    "z_kind": Field("how the label was measured: spec, grism, photoz_many_band", "meta.code;src.redshift", type=TEXT),
    "z_quality": Field("of the label, in its catalogue's own scale", "meta.code.qual;src.redshift"),
    "z_phot": Field("photometric redshift by the survey's default estimator, median of its density", _PHOT),
    "magnitude": Field("AB, in the band `mag_band`", "phot.mag", "mag"),
    "x": Field("place on the map, from its left, of its width", "pos.cartesian.x"),
    "y": Field("place on the map, from its top, of its height", "pos.cartesian.y"),
    "expected_gain": Field("by which its label lowers the mean expected error, given those before it", "stat.value"),
    "object_class": Field("unknown, galaxy, star or agn", "src.class", type=TEXT),
    "z_median": Field("median of the density", f"{_PHOT};stat.median"),
    "z_mode": Field("redshift of the highest density", _PHOT),
    "z_q16": Field("16% quantile of the density", f"{_PHOT};stat.min"),
    "z_q84": Field("84% quantile of the density", f"{_PHOT};stat.max"),
    "z_q025": Field("2.5% quantile of the density", f"{_PHOT};stat.min"),
    "z_q975": Field("97.5% quantile of the density", f"{_PHOT};stat.max"),
    **{
        f"conformal_{side}_{percent}": Field(
            f"end of the {percent}% conformal interval, absent where the labels cannot promise it",
            f"{_PHOT};stat.{end}",
        )
        for percent in PERCENT
        for side, end in (("low", "min"), ("high", "max"))
    },
    "in_support": Field("whether labelled galaxies stand behind it", "meta.code.qual", type=pa.bool_()),
    "reasons": Field("what speaks against it", "meta.note", type=TEXT),
    "distance_ratio": Field("to the 5th labelled neighbour; above 1 no labelled source is near", "stat.value"),
    "labels_in_radius": Field(
        "labelled neighbours, of 20, nearer than the 10th target of as many as there are labels", "meta.number"
    ),
    "effective_neighbours": Field("labelled", "meta.number"),
    "beyond_labels": Field("probability beyond the 99.5th percentile of the labelled redshifts", "stat.probability"),
    "disagreement": Field("of nearest neighbours and network, |difference| / (1 + z)", "stat.value"),
    "mass_at_infinity": Field(
        "share of the conformal distribution that no label stands for", "stat.probability"
    ),
    "pdf_z": Field("edges of the bins of the density", _PHOT, type=pa.list_(REAL)),
    "pdf_density": Field("density in each bin, its integral is 1", f"stat.probability;{_PHOT}", type=pa.list_(REAL)),
}  # fmt: skip


def field(name: str, type: pa.DataType | None = None, *, says: str | None = None) -> pa.Field:
    """The column `name` for a schema; `type` and `says` where a file has its own."""
    known = FIELDS[name]
    told = {"unit": known.unit, "ucd": known.ucd, "says": known.says if says is None else says}
    return pa.field(name, type or known.type, metadata={key: value for key, value in told.items() if value})
