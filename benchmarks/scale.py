"""What a million rows cost: embedding by plan, parts and commit, storing against a bare write, memory by rows.

    python benchmarks/scale.py [--quick] [--check] [--out bench-out/scale] [--largest 10000000]

A catalogue of 20,000 simulated sources is repeated to the sizes wanted, and embedded through `redshelf`'s own plan,
parts and commit by the `photometry` encoder, which leaves the machinery nowhere to hide: a pixel encoder spends a
hundred times as long a source. Each size is a process of its own, whose peak memory is its own. *receipts and commit*:
the time in sha256, receipts and the commit, over the whole run. *stored*: rows a second of vectors of 384 dimensions
written by parts with receipts and a commit, over those of one Arrow write of the same table by LanceDB; in turn, and
the median ratio.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import peak_mb
from kinds import resized

from redshelf.indexing import embed as bulk
from redshelf.indexing import partition, parts, store
from redshelf.indexing.layout import Layout

FULL, QUICK = (10_000, 100_000, 1_000_000), (10_000, 100_000)
SOURCES = 20_000
DIM, STORED_FULL, STORED_QUICK = 384, 500_000, 50_000
ROUNDS = 5


def base(folder: Path) -> Layout:
    """The shelf of simulated sources, without images."""
    from redshelf.indexing.simulate import simulate
    from redshelf.service.embedding import find_encoder
    from redshelf.service.ingest import ingest

    shelf = folder / "base"
    if not (shelf / "shelf.toml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        simulate(folder / "survey", sources=SOURCES, scenario="s1", seed=1, catalogue_only=True)
        ingest(folder / "survey" / "survey.toml", shelf)
        find_encoder(Layout(shelf), "photometry")
    return Layout(shelf)


def timed(spent: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its seconds added to `spent`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

    return wrapped


def child(root: Path) -> None:
    """Embed the shelf at `root` and print what it took as JSON."""
    from redshelf.service.embedding import find_encoder

    layout = Layout(root)
    spent: dict[str, float] = {}
    parts.manifest = timed(spent, "sha256", parts.manifest)  # type: ignore[attr-defined]
    parts.write_json = timed(spent, "receipts", parts.write_json)  # type: ignore[attr-defined]
    bulk.commit = timed(spent, "commit", bulk.commit)
    encoder = find_encoder(layout, "photometry")
    began = time.perf_counter()
    rows = bulk.embed_all(layout, encoder)
    seconds = time.perf_counter() - began
    print(json.dumps({"rows": rows, "seconds": seconds, "peak_mb": peak_mb(), **spent}))


def embedded(whole: Layout, folder: Path, rows: int) -> dict[str, Any]:
    """One size, in a process of its own; the shelf is removed."""
    layout = resized(whole, Layout(folder / f"shelf-{rows}"), rows, images=False)
    shutil.copytree(whole.models, layout.models, dirs_exist_ok=True)
    told = subprocess.run(
        [sys.executable, __file__, "--child", str(layout.root)], check=True, stdout=subprocess.PIPE, text=True
    )
    shutil.rmtree(layout.root)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    # sha256 and receipts are written by the thread that writes, commit after it
    found["share"] = (found["sha256"] + found["receipts"] + found["commit"]) / found["seconds"]
    return found


def stored(folder: Path, rows: int) -> tuple[float, float, float]:
    """Rows a second of a bare Arrow write, by parts, and the median ratio of the second to the first."""
    import lancedb

    rng, schema = np.random.default_rng(0), store.embeddings_schema(DIM)
    values = rng.standard_normal((rows, DIM), dtype=np.float32).astype(np.float16)
    whole = pa.table([pa.array(np.arange(rows)), store.fixed_list(values)], schema=schema)

    def bare() -> float:
        shutil.rmtree(folder / "bare", ignore_errors=True)
        began = time.perf_counter()
        lancedb.connect(folder / "bare").create_table("vectors", whole)
        return rows / (time.perf_counter() - began)

    def ours() -> float:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        table, receipts, began = folder / "ours" / "vectors.lance", folder / "ours" / "work" / "v", time.perf_counter()
        spans = [(a, min(a + partition.PART_ROWS, rows)) for a in range(0, rows, partition.PART_ROWS)]
        for part, (first, past) in enumerate(spans):
            batches = whole.slice(first, past - first).to_batches()
            parts.write_part(table, schema, batches, receipts=receipts, part=part, first_row=first, plan="p")
        parts.commit_parts(table, schema, receipts=receipts, parts=len(spans), plan="p")
        return rows / (time.perf_counter() - began)

    pairs = [(bare(), ours()) for _ in range(ROUNDS)]
    for name in ("bare", "ours"):
        shutil.rmtree(folder / name)
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(b / a for a, b in pairs)


def faults(found: list[dict[str, Any]], ratio: float) -> list[str]:
    """A line for each number of the issue that falls short."""
    lines = []
    if ratio < 0.8:
        lines.append(f"stored at {ratio:.2f} of a bare Arrow write, wanted 0.8")
    by_rows = {f["rows"]: f for f in found}
    if 1_000_000 in by_rows:
        share = by_rows[1_000_000]["share"]
        if share >= 0.02:
            lines.append(f"receipts and commit are {share:.1%} of a run of 1M rows, wanted under 2%")
    small, large = (by_rows[f(r for r in by_rows if r <= 1_000_000)]["peak_mb"] for f in (min, max))
    if abs(large / small - 1) > 0.1:
        lines.append(f"peak memory {small:.0f} to {large:.0f} MB, wanted flat to 10%")
    return lines


def main() -> int:
    """Print the table; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-out/scale"))
    parser.add_argument("--largest", type=int, help="rows of one more run [none]")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return 0
    whole = base(arguments.out)
    sizes = [*(QUICK if arguments.quick else FULL), *([arguments.largest] if arguments.largest else [])]
    print("| rows | seconds | rows/s | receipts and commit | peak memory |\n|---|---|---|---|---|")
    found = []
    for rows in sizes:
        found.append(f := embedded(whole, arguments.out, rows))
        print(
            f"| {rows:,} | {f['seconds']:.1f} | {rows / f['seconds']:,.0f} | "
            f"{f['share']:.1%} ({f['sha256']:.2f} + {f['receipts']:.2f} + {f['commit']:.2f} s) | "
            f"{f['peak_mb']:.0f} MB |",
            flush=True,
        )
    rate = found[-1]["rows"] / found[-1]["seconds"]
    print(f"extrapolated from the last line: 40,000,000 rows in {40e6 / rate / 60:.0f} min")
    bare, ours, ratio = stored(arguments.out, STORED_QUICK if arguments.quick else STORED_FULL)
    print(f"stored, {DIM} dimensions: {ours:,.0f} rows/s by parts, {bare:,.0f} bare, ratio {ratio:.2f}")
    wrong = faults(found, ratio)
    print("\n".join(wrong))
    return 1 if arguments.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
