"""Large tables are written by parts, whatever runs them, and committed once.

A part is written as uncommitted Lance fragments, then a receipt by atomic rename. `commit_parts` checks that the
receipts are complete and unaltered and the files they name whole, commits them in order under a file lock, and verifies
`row == position`; what it has checked it leaves under receipts/, so that a later check knows how the files should be.
A run that is killed repeats at most the parts that it had in hand.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from redshelf.indexing.files import manifest, read_json, verify, write_json
from redshelf.indexing.store import exists, open_table, tag, unreferred
from redshelf.models.errors import BadInput, Conflict

Receipt = dict[str, Any]


def receipt_path(receipts: Path, part: int) -> Path:
    return receipts / f"part-{part:06d}.json"


def done_parts(receipts: Path) -> set[int]:
    """The parts that have a receipt."""
    return {int(p.stem.split("-")[1]) for p in receipts.glob("part-*.json")}


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as people and SLURM write them: 0-3,7."""
    said: list[list[int]] = []
    for number in sorted(numbers):
        if said and number == said[-1][1] + 1:
            said[-1][1] = number
        else:
            said.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in said)


def _seal(document: Receipt) -> str:
    text = json.dumps({k: v for k, v in document.items() if k != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_receipt(receipts: Path, part: int) -> Receipt:
    """The receipt of a part; `BadInput` for one that was altered or damaged."""
    path = receipt_path(receipts, part)
    document = read_json(path)
    if not isinstance(document, dict) or document.get("seal") != _seal(document) or document.get("part") != part:
        raise BadInput(f"{path} was altered or damaged: its seal does not fit its content")
    return document


def write_receipt(receipts: Path, facts: Receipt) -> None:
    """Leave the receipt of a part that is written: `facts` are its `part`, `plan`, `rows`, `files` and more."""
    receipt = {**facts, "ended": time.time(), "host": socket.gethostname()}
    write_json(receipt_path(receipts, facts["part"]), {**receipt, "seal": _seal(receipt)})


def write_part(
    table: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    receipts: Path,
    part: int,
    first_row: int,
    plan: str = "",
    facts: Mapping[str, Any] = MappingProxyType({}),
    wanted: Callable[[], bool] = lambda: True,
) -> int:
    """Write one part of `plan` as uncommitted fragments and its receipt, with `facts` in it; returns its rows.

    The batches' `row` column must count up from `first_row`; anything else is `BadInput` and leaves no receipt.
    Whatever `batches` raises comes out as it was raised, and leaves none either. `Conflict` where the part is not
    `wanted` any more when it is written, as its plan was committed meanwhile: then nothing is left of it.
    """
    from lance.fragment import write_fragments

    started, next_row = time.perf_counter(), first_row
    raised: list[Exception] = []

    def in_order() -> Iterable[pa.RecordBatch]:
        nonlocal next_row
        try:
            for batch in batches:
                rows = batch.column(batch.schema.get_field_index("row")).to_numpy()
                if len(rows) and (rows[0] != next_row or (np.diff(rows) != 1).any()):
                    raise BadInput(f"{table.name} part {part}: rows do not count up from {next_row}")
                next_row += len(rows)
                yield batch
        except Exception as error:
            raised.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, in_order())
    try:
        fragments = write_fragments(reader, str(table), schema=schema)
    except OSError:  # also what Arrow's C interface makes of every exception of the batches, with its traceback as text
        if not raised:
            raise
    if raised:
        raise raised[0]
    written = [table / "data" / file.path for fragment in fragments for file in fragment.files]
    if not wanted() or not all(path.is_file() for path in written):
        for path in written:
            path.unlink(missing_ok=True)
        raise Conflict(f"{table.name} part {part}: plan {plan} was committed or removed while it was written")
    receipt = {
        **facts,
        "part": part,
        "plan": plan,
        "first_row": first_row,
        "rows": next_row - first_row,
        "fragments": [f.to_json() for f in fragments],
        "files": manifest(table, written),
        "write_seconds": time.perf_counter() - started,
    }
    write_receipt(receipts, receipt)
    return next_row - first_row


def _plan(transaction: Any | None) -> str:
    """The plan that a transaction has committed, empty for none."""
    properties = None if transaction is None else transaction.transaction_properties
    return str((properties or {}).get("plan", ""))


def plan_of(dataset: Any) -> str:
    """The plan that made the version that `dataset` is open at, empty where none did."""
    return _plan(dataset.read_transaction(dataset.version))


def checked(home: Path, receipts: Path, *, name: str, parts: int, plan: str) -> list[Receipt]:
    """The receipts in order; their files lie in `home`, and belong to what errors call `name`.

    Damaged ones, and those whose files are, are set aside, so that a next run does these parts again; `Conflict`
    naming them, and those that are missing.
    """
    missing = set(range(parts)) - done_parts(receipts)
    if missing:
        raise Conflict(f"{name}: {len(missing)} of {parts} parts have no receipt: {ranges(missing)}")
    found, faults = [], []
    for part in range(parts):
        try:
            receipt = read_receipt(receipts, part)
            wrong = verify(home, receipt["files"], hashes=True)
            if receipt["plan"] != plan:
                wrong.append(f"the receipt is of plan {receipt['plan']!r}, not {plan!r}")
        except BadInput as error:
            receipt, wrong = {}, [str(error)]
        if wrong:
            faults.append(f"part {part}: {wrong[0]}")
            receipt_path(receipts, part).replace(receipts / f"damaged-{part:06d}.json")
        found.append(receipt)
    if faults:
        raise Conflict(
            f"{name}: {len(faults)} of {parts} parts are damaged and set aside, run them again: "
            + "; ".join(faults[:5])
        )
    return found


def commit_parts(table: Path, schema: pa.Schema, *, receipts: Path, parts: int, plan: str) -> int:
    """Commit all `parts` of `plan` at once, in order, and return the table's rows; removes the receipts.

    Refuses (`Conflict`, naming them) missing and damaged parts and rows that do not continue the table. Committing a
    plan twice changes nothing. One plan at a time may write to a table: what others left uncommitted is removed.
    """
    import lance
    from lance.fragment import FragmentMetadata

    lock = table.parent / "work" / f"{table.name}.lock"  # not beside the receipts, which go with the plan
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(lock)):
        version, rows = 0, 0
        if exists(table):
            dataset = open_table(table)
            version, rows = int(dataset.version), int(dataset.count_rows())
            if plan in {_plan(transaction) for transaction in dataset.get_transactions()} - {""}:
                return _end(table, dataset, receipts, rows=rows, plan=plan)
        documents = checked(table, receipts, name=table.name, parts=parts, plan=plan)
        for document in documents:
            if document["first_row"] != rows:
                raise Conflict(
                    f"{table.name} part {document['part']}: starts at row {document['first_row']}, expected {rows}"
                )
            rows += document["rows"]
        files = {name: facts for document in documents for name, facts in document["files"].items()}
        write_json(_kept(table) / f"{table.stem}.{plan}.json", {"plan": plan, "rows": rows, "files": files})
        fragments = [FragmentMetadata.from_json(json.dumps(f)) for d in documents for f in d["fragments"]]
        overwrite, append = lance.LanceOperation.Overwrite, lance.LanceOperation.Append
        operation = overwrite(schema, fragments) if version == 0 else append(fragments)
        transaction = lance.Transaction(version, operation, transaction_properties={"plan": plan})
        dataset = lance.LanceDataset.commit(str(table), transaction, read_version=version)
        return _end(table, dataset, receipts, rows=rows, plan=plan)


def _end(table: Path, dataset: Any, receipts: Path, *, rows: int, plan: str) -> int:
    """What follows a commit, and is done again where a kill came between."""
    verify_rows(dataset, table.name, expected=rows)
    tag(dataset, f"plan-{plan}")
    for path in unreferred(table):  # what killed or doubled parts left; only under the commit's lock
        path.unlink(missing_ok=True)
    shutil.rmtree(receipts, ignore_errors=True)
    return rows


def _kept(table: Path) -> Path:
    return table.parent / "receipts"


def recorded(table: Path) -> dict[str, dict[str, Any]]:
    """{file, relative to the table: {"sha256", "size"}} of the data files of a table, as they were when written."""
    return {n: f for path in _kept(table).glob(f"{table.stem}.*.json") for n, f in read_json(path)["files"].items()}


def verify_rows(dataset: Any, name: str, *, expected: int) -> None:
    """Raise `BadInput` unless the table has `expected` rows and `row == position` everywhere."""
    position = 0
    for batch in dataset.to_batches(columns=["row"]):
        rows = batch.column(0).to_numpy()
        if (rows != np.arange(position, position + len(rows))).any():
            raise BadInput(f"{name}: row != position at or after position {position}")
        position += len(rows)
    if position != expected:
        raise BadInput(f"{name}: {position} rows, expected {expected}")
