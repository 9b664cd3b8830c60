"""How fast neighbours are found, and how many of the true ones: redshelf beside FAISS, LanceDB, hnswlib and usearch.

    python benchmarks/search.py [--quick] [--check] [--out bench-out/search] [--without hnswlib,usearch]
    python benchmarks/search.py --large [--out bench-out/search]      40 million vectors of 128 numbers

All in one run on the same vectors: *clustered*, a curved set of ten dimensions in many, plus noise; *uniform*, Gaussian
in every dimension, the worst case. Each system looks as far as it must for a recall@10 of 0.95 (or as far as it can),
on queries that are not in the index. *single*: one query at a time on one thread, the median; *batched*: all at once on
two. *index MB*: beside the vectors themselves, which hnswlib and usearch have in theirs, and redshelf in a mapped file
(two bytes a number), as it maps its lists. *bare FAISS*: the same lists and candidates, called
directly; *search()*: `service.search`, from vector to answer. Under filters, a share of the rows passes at random, or
the rows with the lowest first number do, which most queries are far from.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("LANCE_LOG", "error")

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann, assembly

K, RECALL, CORES = 10, 0.95, 2
BLOCK = 65_536
SHARES = (0.1, 0.01, 0.001)
LARGE = (40_000_000, 128)
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Find = Callable[[Floats], Ints]  # rows (Q, K) of queries


def blocks(kind: str, rows: int, dim: int, seed: int) -> Iterator[npt.NDArray[np.float16]]:
    """Vectors of one kind, some at a time; another seed draws others from the same set."""
    shape = np.random.default_rng(7)
    waves, into = shape.normal(size=(10, 64)).astype(np.float32), shape.normal(size=(64, dim)).astype(np.float32) / 8
    phase, spread = shape.uniform(0, 6.28, 64).astype(np.float32), np.float32([0.3, 1, 1.5])
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        noise = rng.standard_normal((n, dim), dtype=np.float32)
        if kind == "uniform":
            yield noise.astype(np.float16)
            continue
        points = rng.standard_normal((n, 10), dtype=np.float32) * rng.choice(spread, size=(n, 1))
        yield (np.sin(points @ waves * 0.6 + phase) @ into + 0.05 * noise).astype(np.float16)


def threads(number: int) -> None:
    import faiss

    faiss.omp_set_num_threads(number)


def recall(found: Ints, true: Ints) -> float:
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, true, strict=True))
    return hits / max(1, int((true >= 0).sum()))


@dataclass(frozen=True)
class Measured:
    recall: float
    single_ms: float
    batched_ms: float  # a query


def measure(find: Find, batched: Find, queries: Floats, true: Ints, singles: int = 200) -> Measured:
    """The recall of single queries, and the times of both ways."""
    threads(1)
    find(queries[:1])
    times, found = [], []
    for number in range(min(singles, len(queries))):
        started = time.perf_counter()
        found.append(find(queries[number : number + 1])[0])
        times.append(time.perf_counter() - started)
    threads(CORES)
    batched(queries[:10])
    rounds = []
    for _ in range(3):
        started = time.perf_counter()
        batched(queries)
        rounds.append(time.perf_counter() - started)
    got = recall(np.array(found), true[: len(found)])
    return Measured(got, 1000 * statistics.median(times), 1000 * min(rounds) / len(queries))


def tuned(efforts: dict[str, tuple[Find, Find]], queries: Floats, true: Ints) -> tuple[str, Measured]:
    """The first of `efforts`, which grow, that reaches the recall on all queries; else the last."""
    enough = (name for name, (_, batched) in efforts.items() if recall(batched(queries), true) >= RECALL)
    name = next(enough, list(efforts)[-1])
    return name, measure(*efforts[name], queries, true)


@dataclass(frozen=True)
class System:
    """One system over the vectors: how long it took to build, what it holds [bytes], how to ask it, less to more."""

    build_s: float
    held: float
    efforts: dict[str, tuple[Find, Find]]


def redshelf(folder: Path, kind: str, rows: int, dim: int) -> tuple[System, ann.Index]:
    started = time.perf_counter()
    assembly.build(folder, partial(blocks, kind, rows, dim, 0), rows=rows, dim=dim, recall=RECALL)
    seconds = time.perf_counter() - started
    index = ann.open_index(folder)

    def find(queries: Floats) -> Ints:
        return index.search(queries, K)[1]

    files = (folder / name for name in (ann.INDEX, ann.LISTS, ann.LIST_OF, ann.KNOWN))
    held = sum(path.stat().st_size for path in files if path.is_file())
    return System(seconds, held, {"as built": (find, find)}), index


def bare(index: ann.Index) -> Find:
    """FAISS itself, as the index calls it."""
    import faiss

    if index.lists is None:
        return lambda queries: np.asarray(index.flat.index.search(queries, K)[1])
    tuning, lists = index.lists.tuning, index.lists.index
    nprobe = min(lists.nlist, int(np.ceil(tuning.lists(np.array([K]))[0])))
    base = faiss.SearchParametersIVF(nprobe=nprobe)
    told = faiss.IndexRefineSearchParameters(k_factor=tuning.factor(K), base_index_params=base)

    def find(queries: Floats, base: Any = base) -> Ints:  # FAISS holds no reference to it
        return np.asarray(index.lists.refined.search(queries, K, params=told)[1])

    return find


def whole(index: ann.Index) -> tuple[Callable[..., Any], Any]:
    """`service.search` over the index, with columns that it hydrates its answers from; and the shelf."""
    from redshelf.indexing.columns import dec_columns, id_columns
    from redshelf.indexing.generation import Generation, PublishedEncoder
    from redshelf.indexing.layout import Layout, ShelfInfo
    from redshelf.models.bands import Band
    from redshelf.service.search import neighbours_of_vector
    from redshelf.service.shelf import OpenEncoder, OpenShelf

    n, rng = len(index.flat), np.random.default_rng(0)
    zeros, ra, dec = np.zeros(n, dtype=np.float32), rng.uniform(0, 360, n), rng.uniform(-90, 90, n)
    ids, gone = np.char.add("s", np.arange(n).astype("U10")).astype("S64"), np.zeros(n, dtype=bool)
    columns = {
        **id_columns(ids, gone), **dec_columns(dec, gone), "ra": ra, "dec": dec, "z_spec": zeros, "z_phot": zeros,
        "z_kind": np.zeros(n, np.int8), "object_class": np.zeros(n, np.int8),
        "magnitudes": np.stack([rng.random(n), index.take(slice(None))[:, 0]], axis=1).astype(np.float32),
    }  # fmt: skip
    facts = PublishedEncoder(name="e", revision="0" * 12, kind="any", dim=index.dim, needs=[])
    published = Generation.model_construct(number=1, default_encoder="e")
    bands = tuple(Band(name, 500.0, 25.0, 0.7, 0.1, 3.0) for name in ("u", "x"))
    info = ShelfInfo("any", bands)
    encoders = {"e": OpenEncoder(facts, index, Path())}
    return neighbours_of_vector, OpenShelf(Layout(Path()), info, published, columns, encoders, {})


def lancedb_table(folder: Path, kind: str, rows: int, dim: int) -> Any:
    """A table of the vectors, of a random number `u` and of their first number `x`."""
    import lancedb
    import pyarrow as pa

    shutil.rmtree(folder, ignore_errors=True)
    schema = pa.schema(
        [("row", pa.int64()), ("u", pa.float32()), ("x", pa.float32()), ("vector", pa.list_(pa.float16(), dim))]
    )
    u = np.random.default_rng(0).random(rows).astype(np.float32)

    def batches() -> Iterator[Any]:
        start = 0
        for block in blocks(kind, rows, dim, 0):
            at = slice(start, start + len(block))
            values = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dim)
            first = pa.array(block[:, 0].astype(np.float32))
            yield pa.RecordBatch.from_arrays(
                [pa.array(np.arange(rows)[at]), pa.array(u[at]), first, values], schema=schema
            )
            start += len(block)

    return lancedb.connect(folder).create_table("v", pa.RecordBatchReader.from_batches(schema, batches()))


def lance_find(table: Any, where: str | None, **how: int) -> tuple[Find, Find]:
    def one(query: Floats) -> list[int]:
        asked = table.search(query).limit(K).select(["row", "_distance"])
        for name, value in how.items():
            asked = getattr(asked, name)(value)
        if where is not None:
            asked = asked.where(where, prefilter=True)
        found = asked.to_arrow()["row"].to_pylist()
        return found + [-1] * (K - len(found))

    def find(queries: Floats) -> Ints:
        return np.array([one(query) for query in queries])

    def batched(queries: Floats) -> Ints:
        with ThreadPoolExecutor(CORES) as pool:
            return np.array(list(pool.map(one, queries)))

    return find, batched


LANCE_EFFORTS = {
    "IVF_PQ": [{"nprobes": n, "refine_factor": r} for n in (10, 20, 40, 80, 160, 320) for r in (5, 20)],
    "IVF_HNSW_SQ": [{"nprobes": n, "ef": e, "refine_factor": 2} for n in (1, 4, 10, 40) for e in (50, 200)],
}


def lance(table: Any, kind: str, rows: int, dim: int, where: str | None = None) -> System:
    """An index of LanceDB over the table."""
    from lancedb.index import HnswSq, IvfPq

    started = time.perf_counter()
    partitions = {"num_partitions": round(rows**0.5), "num_sub_vectors": dim // 16}
    config: Any = IvfPq(distance_type="l2", **partitions) if kind == "IVF_PQ" else HnswSq(distance_type="l2")
    table.create_index("vector", config=config, replace=True)
    efforts = {str(e).replace("'", ""): lance_find(table, where, **e) for e in LANCE_EFFORTS[kind]}
    return System(time.perf_counter() - started, float("nan"), efforts)


def hnsw(kind: str, rows: int, dim: int) -> System:
    import hnswlib

    started = time.perf_counter()
    index = hnswlib.Index(space="l2", dim=dim)
    index.init_index(max_elements=rows, ef_construction=100, M=16)
    index.set_num_threads(CORES)
    for block in blocks(kind, rows, dim, 0):
        index.add_items(block.astype(np.float32))
    seconds = time.perf_counter() - started

    def asking(ef: int, number: int) -> Find:
        def find(queries: Floats) -> Ints:
            index.set_ef(ef)
            index.set_num_threads(number)
            return np.asarray(index.knn_query(queries, K)[0], dtype=np.int64)

        return find

    efforts = {f"ef {ef}": (asking(ef, 1), asking(ef, CORES)) for ef in (10, 20, 40, 80, 160, 320, 640)}
    return System(seconds, index.index_file_size(), efforts)


def usearch(kind: str, rows: int, dim: int) -> System:
    from usearch.index import Index

    started = time.perf_counter()
    index = Index(ndim=dim, metric="l2sq", dtype="f16", connectivity=16, expansion_add=100)
    start = 0
    for block in blocks(kind, rows, dim, 0):
        index.add(np.arange(start, start + len(block)), block, threads=CORES)
        start += len(block)
    seconds = time.perf_counter() - started

    def asking(ef: int, number: int) -> Find:
        def find(queries: Floats) -> Ints:
            index.expansion_search = ef
            keys = index.search(queries.astype(np.float16), K, threads=number).keys
            return np.asarray(keys, dtype=np.int64).reshape(len(queries), -1)

        return find

    efforts = {f"ef {ef}": (asking(ef, 1), asking(ef, CORES)) for ef in (16, 32, 64, 128, 256, 512)}
    return System(seconds, index.memory_usage, efforts)


def row_of(name: str, effort: str, found: Measured, build_s: float, held: float) -> str:
    numbers = f"{found.recall:.3f} | {found.single_ms:.2f} | {1000 / found.batched_ms:,.0f}"
    return f"| {name} | {effort} | {numbers} | {build_s:,.0f} | {'–' if held != held else f'{held / 1e6:,.0f}'} |"


def filtered(
    index: ann.Index, queries: Floats, table: Any | None, unfiltered: Measured, faults: list[str]
) -> Iterator[str]:
    """A line a filter: redshelf, and LanceDB where there is a table."""
    n, promised = len(index.flat), index.lists.tuning.wanted if index.lists else RECALL
    values = {"random": np.random.default_rng(0).random(n).astype(np.float32)}
    values["lowest first number"] = index.take(slice(None))[:, 0].astype(np.float32)
    yield "| rows that pass | first ms | recall@10 | single ms | of unfiltered | LanceDB recall@10 | LanceDB ms |"
    yield "|---|---|---|---|---|---|---|"
    for (name, value), column in zip(values.items(), "ux", strict=True):
        for share in SHARES:
            limit = float(np.quantile(value, share))
            started = time.perf_counter()
            among = index.select(value < limit)
            first = 1000 * (time.perf_counter() - started)
            true = index.search(queries, K, among=among, exact=True)[1]

            def find(some: Floats, among: ann.Selection = among) -> Ints:
                return index.search(some, K, among=among)[1]

            got = measure(find, find, queries, true)
            beside = "| – | – |"
            if table is not None:
                asked = lance_find(table, f"{column} < {limit!r}", **LANCE_EFFORTS["IVF_PQ"][5])
                other = measure(*asked, queries[:60], true[:60], singles=60)
                beside = f"| {other.recall:.3f} | {other.single_ms:.1f} |"
            ratio = got.single_ms / unfiltered.single_ms
            yield f"| {share:.1%}, {name} | {first:.0f} | {got.recall:.3f} | {got.single_ms:.2f} | {ratio:.1f} {beside}"
            if got.recall < promised:
                faults.append(f"filter {share:.1%} {name}: recall {got.recall:.3f}, wanted {promised}")
            if ratio > 3:
                faults.append(f"filter {share:.1%} {name}: {ratio:.1f} times the unfiltered time, wanted 3")


def side_by_side(
    out: Path, kind: str, rows: int, dim: int, queries: int, without: set[str], faults: list[str]
) -> Iterator[str]:
    """The table of one kind of vectors; what falls short goes to `faults`."""
    asked = np.concatenate(list(blocks(kind, queries, dim, 1))).astype(np.float32)
    ours, index = redshelf(out / f"{kind}-{rows}x{dim}" / str(rows), kind, rows, dim)
    threads(CORES)
    true = index.search(asked, K, exact=True)[1]
    yield f"**{kind}**, {rows:,} x {dim}, {queries} queries"
    yield "| | looks | recall@10 | single ms | batched /s | build s | index MB |\n|---|---|---|---|---|---|---|"
    effort, mine = tuned(ours.efforts, asked, true)
    yield row_of("redshelf", effort, mine, ours.build_s, ours.held)
    direct = bare(index)
    faiss_ = measure(direct, direct, asked, true)
    yield row_of("bare FAISS", "the same", faiss_, float("nan"), ours.held)
    ask, shelf = whole(index)
    served = measure(
        lambda some: np.array([[int(n.source_id[1:]) for n in ask(shelf, some[0]).neighbours]]), direct, asked, true
    )
    yield f"| search() | the same | {served.recall:.3f} | {served.single_ms:.2f} | – | – | – |"
    table, best, best_batch, lance_s = None, float("inf"), float("inf"), float("inf")
    for name, build in (("hnswlib", hnsw), ("usearch", usearch)):
        if name not in without:
            system = build(kind, rows, dim)
            effort, got = tuned(system.efforts, asked, true)
            yield row_of(name, effort, got, system.build_s, system.held)
            if name == "hnswlib":
                share, speed = (ours.held + 2 * rows * dim) / system.held, got.single_ms / mine.single_ms
                alone = f"{ours.held / system.held:.2f} without its vectors"
                yield f"\nredshelf maps {share:.2f} of hnswlib's memory ({alone}), at {speed:.2f} times its speed\n"
                if kind == "clustered" and not (speed >= 1 or (ours.held <= 0.25 * system.held and speed >= 0.5)):
                    faults.append(f"{kind}: {speed:.2f} times hnswlib's speed at {share:.2f} of its memory")
            del system
    if "lancedb" not in without:
        table = lancedb_table(out / "lance", kind, rows, dim)
        for which in ("IVF_HNSW_SQ", "IVF_PQ"):  # the last one stays, for the filters
            system = lance(table, which, rows, dim)
            effort, got = tuned(system.efforts, asked[:100], true[:100])
            yield row_of(f"LanceDB {which}", effort, got, system.build_s, system.held)
            if got.recall >= RECALL - 0.02:
                best, best_batch = min(best, got.single_ms), min(best_batch, got.batched_ms)
                lance_s = min(lance_s, system.build_s)
    if table is not None and np.isfinite(best):
        single, batch, time_ = best / mine.single_ms, best_batch / mine.batched_ms, ours.build_s / lance_s
        yield f"\nagainst LanceDB's best: single x {single:.0f}, batched x {batch:.0f}, build {time_:.2f} of its time\n"
        for what, value, wanted in (("single", single, 20), ("batched", batch, 100)):
            if kind == "clustered" and value < wanted:
                faults.append(f"{kind}: {what} {value:.0f} times LanceDB's best, wanted {wanted}")
        if kind == "clustered" and time_ > 0.2:
            faults.append(f"{kind}: build takes {time_:.2f} of LanceDB's time, wanted 0.2")
    if mine.recall < RECALL:
        faults.append(f"{kind}: recall {mine.recall:.3f}, wanted {RECALL}")
    if mine.batched_ms > 1.25 * faiss_.batched_ms:
        faults.append(f"{kind}: batched {mine.batched_ms / faiss_.batched_ms:.2f} times bare FAISS, wanted 1.25")
    if served.single_ms > faiss_.single_ms + 0.3:
        faults.append(f"{kind}: search() takes {served.single_ms - faiss_.single_ms:.2f} ms more than bare FAISS")
    yield ""
    if kind == "clustered":
        yield from filtered(index, asked, table, mine, faults)
    shutil.rmtree(out / "lance", ignore_errors=True)


def build_large(folder: Path) -> tuple[float, float]:
    """Seconds, and the most memory [MB] that was held beside mapped files."""
    rows, dim = LARGE
    started, held, done = time.perf_counter(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(1):
            held.append(private_mb())

    watching = threading.Thread(target=watch)
    watching.start()
    threads(CORES)
    try:
        assembly.build(folder, partial(blocks, "clustered", rows, dim, 0), rows=rows, dim=dim, recall=0.9)
    finally:
        done.set()
        watching.join()
    return time.perf_counter() - started, max(held)


def private_mb() -> float:
    """What this process holds beside mapped files."""
    told = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in told if line.startswith("RssAnon")) / 1024


def large(out: Path, faults: list[str]) -> Iterator[str]:
    """Forty million vectors, built and asked here."""
    rows, dim = LARGE
    folder = out / f"clustered-{rows}x{dim}" / str(rows)
    if not (folder / ann.MANIFEST).exists():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so that what it held is not counted below
            seconds, held = pool.submit(build_large, folder).result()
        yield f"built in {seconds:,.0f} s, at most {held:,.0f} MB held beside mapped files"
        if seconds > 7200 or held > 8000:
            faults.append(f"large: built in {seconds:,.0f} s with {held:,.0f} MB, wanted 7,200 s and 8,000 MB")
    before = private_mb()
    index = ann.open_index(folder)
    asked = np.concatenate(list(blocks("clustered", 200, dim, 1))).astype(np.float32)
    threads(CORES)
    true = index.search(asked, K, exact=True)[1]

    def find(queries: Floats) -> Ints:
        return index.search(queries, K)[1]

    got = measure(find, find, asked, true)
    held = private_mb() - before
    told = ann.read_manifest(folder)
    lists = (folder / ann.LISTS).stat().st_size / 1e6
    yield f"recall@10 {got.recall:.3f}, single {got.single_ms:.2f} ms, batched {1000 / got.batched_ms:,.0f} a second"
    yield f"{told['lists']:,} lists of {told['codes']} codes: {lists:,.0f} MB, mapped; the process holds {held:,.0f} MB"
    for line in told["table"]:
        yield "  {lists:>6} lists, {candidates} candidates: recall {recall:.3f}, {ms:.2f} ms".format(**line)
    if got.recall < 0.9 or got.single_ms > 10 or held > 6000:
        faults.append(f"large: recall {got.recall:.3f}, {got.single_ms:.1f} ms, {held:,.0f} MB, wanted 0.9, 10, 6,000")
    yield from filtered(index, asked, None, got, faults)


def main() -> int:
    """Print the tables; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-out/search"))
    parser.add_argument("--without", default="", help="comma-separated: lancedb, hnswlib, usearch")
    arguments = parser.parse_args()
    without, faults = set(arguments.without.split(",")), list[str]()
    for name in ("hnswlib", "usearch"):
        try:
            __import__(name)
        except ImportError:
            print(f"not measured: {name} is not installed (pip install {name})")
            without.add(name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.large:
        for line in large(arguments.out, faults):
            print(line, flush=True)
    else:
        sizes = (
            [("clustered", 100_000, 384)] if arguments.quick else [("clustered", 10**6, 384), ("uniform", 200_000, 96)]
        )
        for kind, rows, dim in sizes:
            for line in side_by_side(arguments.out, kind, rows, dim, 300 if arguments.quick else 1000, without, faults):
                print(line, flush=True)
    print("\n".join(faults))
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
