"""VOTable 1.4, written: documents, tables with PARAMs for what they say of themselves, errors.

Rows are TABLEDATA, which every reader takes and a person can read, or BINARY2, half as long. Written here and not by
astropy: of 1,000 rows its writer alone takes 40 ms, where a whole cone search as TABLEDATA is answered in 10 ms.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa

from redshelf.indexing.joining import facts_of, lines_of, list_size, plain, says

Serialization = Literal["tabledata", "binary2"]
NAMESPACE = "http://www.ivoa.net/xml/VOTable/v1.3"  # that of 1.4 too
TYPES = {pa.float64(): ("double", ">f8"), pa.int32(): ("int", ">i4"), pa.bool_(): ("boolean", "S1")}
POSITION = ("ra_deg", "dec_deg")
FRAME = '<COOSYS ID="icrs" system="ICRS"/>\n'
NOT_XML = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "?")


def text(value: object) -> str:
    """A value as XML text; what no XML document may hold is replaced."""
    return escape(str(value).translate(NOT_XML))


def attribute(value: object) -> str:
    """A value as an XML attribute, in its quotes."""
    return quoteattr(str(value).translate(NOT_XML))


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """An element around `content`, which is XML already; attributes that are None are left out, and a trailing
    underscore of their names."""
    told = "".join(f" {key.rstrip('_')}={attribute(value)}" for key, value in attributes.items() if value is not None)
    return f"<{name}{told}>{content}</{name}>\n" if content else f"<{name}{told}/>\n"


def document(content: str) -> bytes:
    """The whole document around its INFOs and RESOURCEs."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<VOTABLE version="1.4" xmlns="{NAMESPACE}">\n{content}</VOTABLE>\n'
    ).encode()


def param(name: str, value: object, **attributes: object) -> str:
    """A text as a PARAM."""
    datatype = "char" if str(value).isascii() else "unicodeChar"
    return element("PARAM", name=name, datatype=datatype, arraysize="*", value=value, **attributes)


def status(value: str, message: str = "") -> str:
    """DALI's INFO of how it went: OK, OVERFLOW or ERROR."""
    return element("INFO", text(message), name="QUERY_STATUS", value=value)


def error(message: str) -> bytes:
    """A document that only says what was wrong: as Simple Cone Search 1.03 wants it, and as DALI does."""
    told = element("INFO", name="Error", ID="Error", value=message)
    return document(told + element("RESOURCE", status("ERROR", message), type="results"))


def _field(field: pa.Field, width: int | None, named: Mapping[str, str], serialization: Serialization) -> str:
    size = list_size(field.type)
    arraysize = None if size is None else str(size)
    if width is not None:
        datatype, arraysize = "char", str(width) if serialization == "binary2" else "*"
    else:
        datatype = TYPES[field.type if size is None else field.type.value_type][0]
    description = says(field, "says")
    return element(
        "FIELD",
        element("DESCRIPTION", text(description)) if description else "",
        name=field.name,
        ID=field.name,
        datatype=datatype,
        arraysize=arraysize,
        unit=says(field, "unit"),
        ucd=named.get(field.name, says(field, "ucd")),
        ref="icrs" if field.name in POSITION else None,
    )


def _real(value: float) -> str:
    return repr(value) if isfinite(value) else "NaN" if value != value else "+Inf" if value > 0 else "-Inf"


def _cells(column: pa.ChunkedArray) -> list[str]:
    """Every value as TABLEDATA has it, so that it is read back to the bit; nothing for null."""
    values = column.to_pylist()
    if pa.types.is_string(column.type):
        return ["" if value is None else text(value.encode("ascii", "replace").decode()) for value in values]
    if pa.types.is_fixed_size_list(column.type):
        return ["" if value is None else " ".join(map(_real, value)) for value in values]
    if pa.types.is_boolean(column.type):
        return ["" if value is None else "T" if value else "F" for value in values]
    write = _real if pa.types.is_floating(column.type) else repr
    return ["" if value is None else write(value) for value in values]


def _tabledata(table: pa.Table, widths: Mapping[str, int]) -> str:
    columns = [_cells(column) for column in table.columns]
    line = "<TR>" + "<TD>%s</TD>" * len(columns) + "</TR>\n"
    return "<TABLEDATA>\n" + "".join(line % row for row in zip(*columns, strict=True)) + "</TABLEDATA>\n"


def _binary2(table: pa.Table, widths: Mapping[str, int]) -> str:
    n_null = -(-table.num_columns // 8)
    dtype: list[Any] = [("null", "u1", (n_null,))]
    for field in table.schema:
        size, width = list_size(field.type), widths.get(field.name)
        kind = f"S{width}" if width else TYPES[field.type if size is None else field.type.value_type][1]
        dtype.append((field.name, kind) if size is None else (field.name, kind, (size,)))
    records = np.zeros(len(table), dtype=dtype)
    null = np.zeros((len(table), 8 * n_null), dtype=bool)
    for number, (field, column) in enumerate(zip(table.schema, table.columns, strict=True)):
        null[:, number] = column.is_null()
        if pa.types.is_string(field.type):
            records[field.name] = np.array([(value or "").encode("ascii", "replace") for value in column.to_pylist()])
        elif pa.types.is_boolean(field.type):
            records[field.name] = np.where(column.fill_null(False), b"T", b"F")
        else:
            records[field.name] = plain(column)
    records["null"] = np.packbits(null, axis=1)
    stream = base64.encodebytes(records.tobytes()).decode()
    return element("BINARY2", element("STREAM", stream, encoding="base64"))


ROWS: dict[Serialization, Callable[[pa.Table, Mapping[str, int]], str]] = {
    "tabledata": _tabledata,
    "binary2": _binary2,
}


def table(
    table: pa.Table,
    *,
    serialization: Serialization = "tabledata",
    ucds: Mapping[str, str] | None = None,
) -> str:
    """A TABLE: its facts as PARAMs, its columns as FIELDs whose ID is their name, and its rows. `ucds` take
    the place of the columns' own."""
    widths = lines_of(table).widths()
    told = "".join(param(name, value) for name, value in facts_of(table.schema).items())
    fields = "".join(_field(field, widths.get(field.name), ucds or {}, serialization) for field in table.schema)
    data = element("DATA", "\n" + ROWS[serialization](table, widths)) if len(table) else ""
    return element("TABLE", "\n" + told + fields + data, name="sources")


def answered(table: str, *, overflow: bool = False) -> str:
    """A RESOURCE of results, with the frame that its positions refer to. That there is more than the table is told
    behind it, as DALI has it."""
    before, after = ("", status("OVERFLOW")) if overflow else (status("OK"), "")
    return element("RESOURCE", "\n" + before + FRAME + table + after, type="results")


def write(written: pa.Table, *, serialization: Serialization = "tabledata") -> bytes:
    """A document of one table."""
    return document(answered(table(written, serialization=serialization)))
