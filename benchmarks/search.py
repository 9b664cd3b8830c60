"""How fast neighbours are found, and how many of the true ones: redshelf beside FAISS, LanceDB, hnswlib and usearch.

    python benchmarks/search.py [--quick] [--check] [--out bench-out/search] [--without hnswlib,usearch]
    python benchmarks/search.py --shelf SHELF --encoder NAME [--lists]    the vectors of a shelf
    python benchmarks/search.py --large [--out bench-out/search]          40 million vectors of 128 numbers

All in one run on the same vectors (`systems`): clustered, uniform, or those of a shelf, by inverted lists (`--lists`)
also where they are so few that redshelf would compare with each. Each system (`peers`) looks as far as it must for a
recall@10 of 0.95 (or as far as it can), on queries that are not in the index. *single*: one query at a time on one
thread, the median; *batched*: all at once on two. *index MB*: beside the vectors themselves, which hnswlib and usearch
have in theirs, and redshelf in a mapped file (two bytes a number), as it maps its lists. *bare FAISS*: the same lists
and candidates, called directly; *search()*: `service.search`, from vector to answer. Under filters, a share of the rows
passes at random, or the rows with the lowest first number do, which most queries are far from; *of unfiltered* is by
the time on the processor, of the same queries without a filter asked in turn with them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("LANCE_LOG", "error")

import numpy as np
import peers
from systems import (
    CORES,
    RECALL,
    Asked,
    Find,
    Floats,
    Ints,
    K,
    Measured,
    System,
    Vectors,
    blocks,
    measure,
    of_shelf,
    synthetic,
    threads,
    tuned,
)

from redshelf.indexing import ann, assembly

SHARES = (0.1, 0.01, 0.001)
LARGE = (40_000_000, 128)


def redshelf(folder: Path, vectors: Vectors, *, lists: bool = False) -> tuple[System, ann.Index]:
    """Its index of the vectors; `lists` also where they are few."""
    started = time.perf_counter()
    few, ann.EXACT_VALUES = ann.EXACT_VALUES, 0 if lists else ann.EXACT_VALUES
    assembly.build(folder, vectors.blocks, rows=vectors.rows, dim=vectors.dim, recall=RECALL)
    ann.EXACT_VALUES = few
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


def row_of(name: str, effort: str, found: Measured, build_s: float, held: float) -> str:
    numbers = f"{found.recall:.3f} | {found.single_ms:.2f} | {1000 / found.batched_ms:,.0f}"
    return f"| {name} | {effort} | {numbers} | {build_s:,.0f} | {'–' if held != held else f'{held / 1e6:,.0f}'} |"


def filtered(index: ann.Index, queries: Floats, table: Any | None, faults: list[str]) -> Iterator[str]:
    """A line a filter: redshelf, and LanceDB where there is a table."""
    n, promised = len(index.flat), index.lists.tuning.wanted if index.lists else RECALL
    values = {"random": np.random.default_rng(0).random(n).astype(np.float32)}
    values["lowest first number"] = index.take(slice(None))[:, 0].astype(np.float32)
    plain = partial(_rows, index, None)
    unfiltered = Asked(plain, plain, plain(queries))
    yield "| rows that pass | first ms | recall@10 | single ms | of unfiltered | LanceDB recall@10 | LanceDB ms |"
    yield "|---|---|---|---|---|---|---|"
    for (name, value), column in zip(values.items(), "ux", strict=True):
        for share in SHARES:
            limit = float(np.quantile(value, share))
            started = time.perf_counter()
            among = index.select(value < limit)
            first = 1000 * (time.perf_counter() - started)
            true = index.search(queries, K, among=among, exact=True)[1]
            find = partial(_rows, index, among)
            without, got = measure([unfiltered, Asked(find, find, true)], queries)
            beside = "| – | – |"
            if table is not None:
                how = peers.lance_find(table, f"{column} < {limit!r}", **peers.LANCE_EFFORTS["IVF_PQ"][5])
                other = measure([Asked(*how, true[:60])], queries[:60])[0]
                beside = f"| {other.recall:.3f} | {other.single_ms:.1f} |"
            ratio = got.cpu_ms / without.cpu_ms
            yield f"| {share:.1%}, {name} | {first:.0f} | {got.recall:.3f} | {got.single_ms:.2f} | {ratio:.1f} {beside}"
            if got.recall < promised:
                faults.append(f"filter {share:.1%} {name}: recall {got.recall:.3f}, wanted {promised}")
            if ratio > 3:
                faults.append(f"filter {share:.1%} {name}: {ratio:.1f} times the unfiltered time, wanted 3")


def _rows(index: ann.Index, among: ann.Selection | None, queries: Floats) -> Ints:
    return index.search(queries, K, among=among)[1]


def side_by_side(out: Path, vectors: Vectors, without: set[str], faults: list[str], *, lists: bool) -> Iterator[str]:
    """The table of one kind of vectors; what falls short goes to `faults`."""
    asked, kind, rows, dim = vectors.queries, vectors.name, vectors.rows, vectors.dim
    ours, index = redshelf(out / f"{kind}-{rows}x{dim}" / str(rows), vectors, lists=lists)
    threads(CORES)
    true = index.search(asked, K, exact=True)[1]
    yield f"**{kind}**, {rows:,} x {dim}, {len(asked)} queries"
    yield "| | looks | recall@10 | single ms | batched /s | build s | index MB |\n|---|---|---|---|---|---|---|"
    direct, (ask, shelf) = bare(index), whole(index)

    def served(some: Floats) -> Ints:
        return np.array([[int(n.source_id[1:]) for n in ask(shelf, some[0]).neighbours]])

    find = ours.efforts["as built"][0]
    mine, faiss_, whole_ = measure(
        [Asked(find, find, true), Asked(direct, direct, true), Asked(served, direct, true)], asked
    )
    yield row_of("redshelf", "as built", mine, ours.build_s, ours.held)
    yield row_of("bare FAISS", "the same", faiss_, float("nan"), ours.held)
    yield f"| search() | the same | {whole_.recall:.3f} | {whole_.single_ms:.2f} | – | – | – |"
    for name, build in peers.GRAPHS.items():
        if name not in without:
            system = build(vectors)
            effort, got = tuned(system.efforts, asked, true)
            yield row_of(name, effort, got, system.build_s, system.held)
            if name == "hnswlib":
                share, speed = (ours.held + 2 * rows * dim) / system.held, got.single_ms / mine.single_ms
                alone = f"{ours.held / system.held:.2f} without its vectors"
                yield f"\nredshelf maps {share:.2f} of hnswlib's memory ({alone}), at {speed:.2f} times its speed\n"
                if kind == "clustered" and not (speed >= 1 or (ours.held <= 0.25 * system.held and speed >= 0.5)):
                    faults.append(f"{kind}: {speed:.2f} times hnswlib's speed at {share:.2f} of its memory")
            del system
    table = None if "lancedb" in without else peers.lancedb_table(out / "lance", vectors)
    if table is not None:
        yield from beside_lancedb(table, vectors, true, ours, mine, faults)
    if mine.recall < RECALL:
        faults.append(f"{kind}: recall {mine.recall:.3f}, wanted {RECALL}")
    if mine.batched_ms > 1.25 * faiss_.batched_ms:
        faults.append(f"{kind}: batched {mine.batched_ms / faiss_.batched_ms:.2f} times bare FAISS, wanted 1.25")
    more = whole_.cpu_ms - faiss_.cpu_ms
    yield f"\nsearch() takes {more:.2f} ms more of the processor than bare FAISS ({faiss_.cpu_ms:.2f} ms)"
    if more > 0.3:
        faults.append(f"{kind}: search() takes {more:.2f} ms more than bare FAISS, wanted 0.3")
    yield ""
    if index.lists is not None:
        yield from filtered(index, asked, table, faults)
    shutil.rmtree(out / "lance", ignore_errors=True)


def beside_lancedb(
    table: Any, vectors: Vectors, true: Ints, ours: System, mine: Measured, faults: list[str]
) -> Iterator[str]:
    """LanceDB's lines, and how many times its best redshelf is."""
    kind, best, best_batch, lance_s = vectors.name, float("inf"), float("inf"), float("inf")
    for which in ("IVF_HNSW_SQ", "IVF_PQ"):  # the last one stays, for the filters
        system = peers.lance(table, which, vectors)
        effort, got = tuned(system.efforts, vectors.queries[:100], true[:100])
        yield row_of(f"LanceDB {which}", effort, got, system.build_s, system.held)
        if got.recall >= RECALL - 0.02:
            best, best_batch = min(best, got.single_ms), min(best_batch, got.batched_ms)
            lance_s = min(lance_s, system.build_s)
    if not np.isfinite(best):
        return
    single, batch, time_ = best / mine.single_ms, best_batch / mine.batched_ms, ours.build_s / lance_s
    yield f"\nagainst LanceDB's best: single x {single:.0f}, batched x {batch:.0f}, build {time_:.2f} of its time\n"
    for what, value, wanted in (("single", single, 20), ("batched", batch, 100)):
        if kind == "clustered" and value < wanted:
            faults.append(f"{kind}: {what} {value:.0f} times LanceDB's best, wanted {wanted}")
    if kind == "clustered" and time_ > 0.2:
        faults.append(f"{kind}: build takes {time_:.2f} of LanceDB's time, wanted 0.2")


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
    asked = synthetic("clustered", rows, dim, queries=200).queries
    threads(CORES)
    true = index.search(asked, K, exact=True)[1]
    find = partial(_rows, index, None)
    got = measure([Asked(find, find, true)], asked)[0]
    held = private_mb() - before
    told = ann.read_manifest(folder)
    lists = (folder / ann.LISTS).stat().st_size / 1e6
    yield f"recall@10 {got.recall:.3f}, single {got.single_ms:.2f} ms, batched {1000 / got.batched_ms:,.0f} a second"
    yield f"{told['lists']:,} lists of {told['codes']} codes: {lists:,.0f} MB, mapped; the process holds {held:,.0f} MB"
    for line in told["table"]:
        yield "  {lists:>6} lists, {candidates} candidates: recall {recall:.3f}, {ms:.2f} ms".format(**line)
    if got.recall < 0.9 or got.single_ms > 10 or held > 6000:
        faults.append(f"large: recall {got.recall:.3f}, {got.single_ms:.1f} ms, {held:,.0f} MB, wanted 0.9, 10, 6,000")
    yield from filtered(index, asked, None, faults)


def main() -> int:
    """Print the tables; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-out/search"))
    parser.add_argument("--without", default="", help="comma-separated: lancedb, hnswlib, usearch")
    parser.add_argument("--rows", type=int, default=10**6, help="of the clustered vectors [1000000]")
    parser.add_argument("--shelf", type=Path, help="the vectors of this shelf instead")
    parser.add_argument("--encoder", help="which of them")
    parser.add_argument("--lists", action="store_true", help="inverted lists also for few vectors")
    arguments = parser.parse_args()
    if (arguments.shelf is None) != (arguments.encoder is None):
        parser.error("--shelf and --encoder go together")
    without, faults = set(arguments.without.split(",")), list[str]()
    for name in peers.GRAPHS:
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
        for vectors in chosen(arguments):
            for line in side_by_side(arguments.out, vectors, without, faults, lists=arguments.lists):
                print(line, flush=True)
    print("\n".join(faults))
    return 1 if arguments.check and faults else 0


def chosen(arguments: argparse.Namespace) -> Iterator[Vectors]:
    if arguments.shelf is not None:
        yield of_shelf(arguments.shelf, arguments.encoder, queries=1000)
    elif arguments.quick:
        yield synthetic("clustered", 100_000, 384, queries=300)
    else:
        yield synthetic("clustered", arguments.rows, 384, queries=1000)
        yield synthetic("uniform", 200_000, 96, queries=1000)


if __name__ == "__main__":
    sys.exit(main())
