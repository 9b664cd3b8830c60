"""The lists of an answer as one table: columns with their units and UCDs, and where they come from as its metadata.

Whatever JSON says of a source is a column here, under the same name; what it says once of the whole list, such as the
encoder, its revision and the generation, are facts of the table. `indexing/tabular` writes it as VOTable, CSV, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import pyarrow as pa

from redshelf.indexing import joining
from redshelf.models import support
from redshelf.service.answers import (
    Answer,
    CompareAnswer,
    ConeAnswer,
    ConeSource,
    Listed,
    Neighbour,
    NeighboursAnswer,
    Outlier,
    OutliersAnswer,
    RedshiftAnswer,
    RedshiftsAnswer,
)
from redshelf.service.fields import FIELDS, PERCENT, field
from redshelf.service.map_answers import MapSource, SelectAnswer

Lists = SelectAnswer | NeighboursAnswer | ConeAnswer | OutliersAnswer | CompareAnswer | RedshiftsAnswer
OF_ONE = ("source_id", "z_median", "z_mode", "z_q16", "z_q84")  # fields of a redshift as they are


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def make(
    columns: Mapping[str, Sequence[Any]], facts: Mapping[str, Any], *, sizes: Mapping[str, int] | None = None
) -> pa.Table:
    """A table of these columns, in the order of `FIELDS`; facts that are None are left out, and those that
    are called like a column are of the query.

    Lists of one length, which densities are, become lists of fixed size (`sizes`, where all may be unknown). A text
    that is not known is empty and a list that is not known full of NaN: readers differ in what they make of null there.
    """
    fields, arrays = [], []
    for name in FIELDS:
        if name not in columns:
            continue
        one, values = field(name), columns[name]
        if pa.types.is_list(one.type):
            size = max((len(value) for value in values if value is not None), default=(sizes or {}).get(name, 1))
            one = field(name, pa.list_(one.type.value_type, size))
            values = [[nan] * size if value is None else value for value in values]
        elif pa.types.is_string(one.type):
            values = [value or "" for value in values]
        fields.append(one)
        arrays.append(pa.array(values, one.type))
    known = {name: value for name, value in facts.items() if value is not None and value != []}
    told = {joining.key(f"query_{name}" if name in columns else name): _text(value) for name, value in known.items()}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=told))


def _sources(sources: Sequence[Listed], kind: type[Listed]) -> dict[str, list[Any]]:
    names = [name for name in kind.model_fields if name != "score" or any(one.score is not None for one in sources)]  # type: ignore[attr-defined]
    return {name: [getattr(one, name) for one in sources] for name in names}


def _facts(answer: Answer, *lists: str) -> dict[str, Any]:
    """What an answer says of itself, but for its lists and what is nested in it."""
    told = {name: getattr(answer, name) for name in type(answer).model_fields if name not in lists}
    return {name: value for name, value in told.items() if not isinstance(value, (Answer, tuple))}


def _flat(one: RedshiftAnswer) -> dict[str, Any]:
    """One line of a table of redshifts."""
    low, high = one.interval_95 or (None, None)
    found = {name: getattr(one, name) for name in OF_ONE} | {"z_q025": low, "z_q975": high}
    for percent in PERCENT:
        ends = getattr(one.conformal, f"interval_{percent}") or (None, None)
        found |= {f"conformal_{side}_{percent}": end for side, end in zip(("low", "high"), ends, strict=True)}
    found |= {"in_support": one.support.in_support, "reasons": "; ".join(one.support.reasons)}
    found |= {name: getattr(one.support, name) for name in support.NUMBERS}
    return found | {"pdf_z": one.pdf and one.pdf.z, "pdf_density": one.pdf and one.pdf.density}


def of_redshifts(
    answers: Sequence[RedshiftAnswer], survey: str, *, pdf: bool, sizes: Mapping[str, int] | None = None
) -> pa.Table:
    """A line for each answer; `sizes` of the lists of a density, for parts that are to be put together."""
    rows = [_flat(one) for one in answers]
    columns = {name: [row[name] for row in rows] for name in rows[0] if pdf or not name.startswith("pdf_")}
    first = answers[0]  # all are by one estimator of one generation
    facts = {"survey": survey, **_facts(first, "source_id", "pdf", *rows[0])}
    for name in ("calibration", "shift"):
        facts |= {f"{name}_{key}": value for key, value in getattr(first, name)}
    return make(columns, facts, sizes=sizes)


OF_A_QUERY = ("neighbours", "query", "n_matching", "complete")  # what differs between the answers to one job


def of_neighbours(answers: Sequence[NeighboursAnswer], survey: str) -> pa.Table:
    """A line for each neighbour in the answers about several sources, with the `query` that it is of."""
    lines = [one for answer in answers for one in answer.neighbours]
    queries = [answer.query for answer in answers for _ in answer.neighbours]
    return make({"query": queries, **_sources(lines, Neighbour)}, {"survey": survey, **_facts(answers[0], *OF_A_QUERY)})


def table_of(answer: Lists, *, survey: str, pdf: bool = False) -> pa.Table:
    """The table of an answer. `pdf`: redshifts with their densities, a list in each line; of a comparison the lines of
    both encoders, one after the other."""
    if isinstance(answer, RedshiftsAnswer):
        return of_redshifts(answer.redshifts, survey, pdf=pdf)
    if isinstance(answer, CompareAnswer):
        both = [one for part in answer.neighbours for one in part.neighbours]
        names = [part.encoder for part in answer.neighbours for _ in part.neighbours]
        told = _facts(answer, "neighbours") | {
            name: [getattr(part, name) for part in answer.neighbours]
            for name in ("encoder", "revision", "exact", "recall", "n_matching")
        }
        return make({"encoder": names, **_sources(both, Neighbour)}, {"survey": survey, **told})
    if isinstance(answer, SelectAnswer):
        return make(_sources(answer.sources, MapSource), {"survey": survey, **_facts(answer, "sources")})
    if isinstance(answer, ConeAnswer):
        return make(_sources(answer.sources, ConeSource), {"survey": survey, **_facts(answer, "sources")})
    if isinstance(answer, OutliersAnswer):
        return make(_sources(answer.outliers, Outlier), {"survey": survey, **_facts(answer, "outliers")})
    return make(_sources(answer.neighbours, Neighbour), {"survey": survey, **_facts(answer, "neighbours")})
