"""What the service takes under load: `redshelf serve` on loopback, beside a bare FastAPI route of the same FAISS call.

    python benchmarks/serve.py [--quick] [--check] [--sources N] [--clip-python PATH] [--out bench-out/serve]

A shelf of a million sources with clustered vectors of 384 numbers, photometry, and redshifts fitted on 2,000 labels;
and a small one with images, to which cutouts are uploaded. Client and servers share the machine. At one client the
routes are asked in turn, so that a busy machine slows all alike; saturation is that of 16 connections, ours and the
bare route's in turn. With a Python that has clip-retrieval (`clip_peer.py` says how), its `/knn-service` is asked for
the same vectors. A wanted number that is missed is said. (Making the shelves takes minutes, and is done once. The load
is bounded: `--rounds` questions of a kind, then rounds of `--seconds` of saturation, on 16 connections at most.)
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from clip_peer import question
from common import free_port
from cone import SURVEY

if TYPE_CHECKING:
    from redshelf.service.shelf import OpenShelf

DIM, CLUSTERS, LABELS, K = 384, 1000, 2000, 10
CONNECTIONS, ROUNDS = 16, 9  # short ones in turn: what else the machine does comes and goes in seconds
CLIP = "clip-retrieval's /knn-service"
WANTED = {  # name -> (median ms, 99% ms), 0: not wanted
    "neighbours by id": (4.0, 20.0),
    "redshift by id, with its density": (8.0, 0.0),
    "uploaded cutout": (40.0, 0.0),
    "/scs, 1,000 rows": (60.0, 0.0),
    "/healthz": (2.0, 0.0),
}
LOADED_S = 20.0  # after which workers that are ready have loaded what their first questions need, too
WANTED_CLIP = 0.1  # our median over that of clip-retrieval
WANTED_RATIO, WANTED_READY_S, WORKER_MB, SHARED_MB = 0.7, 5.0, 250.0, 1300.0


def make_shelf(root: Path, sources: int) -> None:
    """The large shelf, made once; its encoder `wide` has random weights and vectors of our own."""
    import lance
    import pyarrow as pa
    from astropy.table import Table

    from redshelf.indexing import store
    from redshelf.indexing.layout import Layout
    from redshelf.models import checkpoint
    from redshelf.models.vit import SIZES, MultiBandViT
    from redshelf.service.embedding import embed
    from redshelf.service.fit import fit
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish

    rng, layout = np.random.default_rng(0), Layout(root)
    table = Table({"ID": [f"c{i:08d}" for i in range(sources)]})
    table["RA"], table["DEC"] = rng.uniform(150, 151, sources), rng.uniform(2, 3, sources)
    z = rng.uniform(0.05, 1.5, sources)
    total = 10 ** rng.uniform(0, 2, sources)
    for band, slope in (("g", 1.6), ("r", 0.8), ("i", 0.0)):
        table[f"F_{band}"] = total * 10 ** (-0.4 * slope * z) + rng.normal(0, 0.1, sources)
        table[f"E_{band}"] = np.full(sources, 0.1)
    table["Z"] = np.where(rng.random(sources) < LABELS / sources, z, np.nan)
    root.parent.mkdir(parents=True, exist_ok=True)
    table.write(root.parent / "catalogue.fits", overwrite=True)
    survey = root.parent / "survey.toml"
    survey.write_text(SURVEY + '[[labels]]\nz = "Z"\nsurvey = "made"\nkind = "spec"\n')
    ingest(survey, root)
    info = layout.read_info()
    size = replace(SIZES["tiny"], dim=DIM, heads=8)
    made = MultiBandViT(info.band_names, groups=[info.band_names], cutout_px=32, size=size, name="wide")
    revision = checkpoint.save(made, layout.models, provenance={"fitted_on": "nothing"}).name.rpartition(".")[2]
    centres = rng.normal(0, 1, (CLUSTERS, DIM)).astype(np.float32)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, sources, 1 << 16):
            rows = np.arange(start, min(start + (1 << 16), sources))
            vectors = centres[rng.integers(0, CLUSTERS, len(rows))] + rng.normal(0, 0.6, (len(rows), DIM))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            columns = [pa.array(rows), store.fixed_list(vectors.astype(np.float16))]
            yield pa.RecordBatch.from_arrays(columns, schema=store.embeddings_schema(DIM))

    lance.write_dataset(batches(), str(layout.embeddings("wide", revision)), schema=store.embeddings_schema(DIM))
    embed(root, encoder="photometry")
    for encoder in ("wide", "photometry"):
        build_index(root, encoder=encoder)
    fit(root, encoder="photometry")
    publish(root, default_encoder="wide")


def make_images(root: Path) -> None:
    """The small shelf with images and a transformer that has hardly been trained, made once."""
    from redshelf.indexing.simulate import simulate
    from redshelf.service.embedding import embed
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish
    from redshelf.service.training import Run, pretrain

    survey = simulate(root.parent / "survey", sources=300, scenario="s0", seed=1, cutout_px=64)
    ingest(survey, root)
    pretrain(root, name="vit", run=Run(steps=1))
    embed(root, encoder="vit")
    build_index(root, encoder="vit")
    publish(root)


@dataclass(frozen=True)
class Running:
    """A server of some processes."""

    process: subprocess.Popen[bytes]
    port: int
    ready_s: float

    def pss_mb(self) -> float:
        """Of its children, which answer: memory that several share is counted once."""
        folder = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        total = 0.0
        for pid in folder.read_text().split():
            with suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    told = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    total += int(told.split("Pss:")[1].split()[0]) / 1024
        return total


@contextmanager
def running(command: list[str], port: int, ready: str, log: Path, **environment: str) -> Iterator[Running]:
    """A server, once it answers `ready` with 200."""
    began = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **environment})
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                connection.request("GET", ready)
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.02)
            finally:
                connection.close()
        yield Running(process, port, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ours(shelf: Path, workers: int, log: Path) -> AbstractContextManager[Running]:
    port = free_port()
    command = [sys.executable, "-m", "redshelf.api.cli", "serve", "--shelf", str(shelf), "--port", str(port)]
    told = {"REDSHELF_STATE_DIR": str(log.parent / "state"), "REDSHELF_THREADS": "1"}
    return running([*command, "--workers", str(workers)], port, "/readyz", log, **told)


def bare(index: Path, columns: Path, workers: int, log: Path) -> AbstractContextManager[Running]:
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("bare.py")), str(port), str(workers)]
    told = {"BARE_INDEX": str(index), "BARE_COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    return running(command, port, "/bare/c00000001", log, **told)


def clip(python: Path, folder: Path, log: Path) -> AbstractContextManager[Running]:
    port = free_port()
    command = [str(python), str(Path(__file__).parent / "clip_peer.py"), "serve", str(folder), str(port)]
    return running(command, port, "/indices-list", log, OMP_NUM_THREADS="1")


def make_clip(python: Path, shelf: OpenShelf, folder: Path) -> None:
    """The vectors of the shelf and the ids of its sources as clip-retrieval reads them, and its index, made once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "embeddings").mkdir(parents=True)
    (folder / "metadata").mkdir()
    names, known = shelf.columns["ids"], shelf.encoder("wide").index
    file = folder / "embeddings" / "img_emb_0.npy"
    vectors = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(len(shelf), DIM))
    for start in range(0, len(shelf), 1 << 16):
        rows = np.arange(start, min(start + (1 << 16), len(shelf)))
        vectors[rows] = known.take(rows)
    vectors.flush()
    told = pa.table({"image_path": [bytes(name).decode() for name in names]})  # in the order of rows, as the vectors
    pq.write_table(told, folder / "metadata" / "metadata_0.parquet")
    subprocess.run([str(python), str(Path(__file__).parent / "clip_peer.py"), "build", str(folder)], check=True)


async def _saturate(port: int, paths: list[str], seconds: float) -> float:
    ends, answered = time.perf_counter() + seconds, 0

    async def one(number: int) -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < ends:
            path = paths[(number * 997 + answered) % len(paths)]
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
            answered += 1
        writer.close()

    await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    return answered / seconds


def saturation(port: int, paths: list[str], seconds: float) -> float:
    """Answers a second on `CONNECTIONS` connections."""
    return asyncio.run(_saturate(port, paths, seconds))


@dataclass(frozen=True)
class Question:
    """One request, as http.client takes it."""

    port: int
    path: str
    body: bytes | None = None
    kind: str = ""

    def ask(self, connection: http.client.HTTPConnection, *, tries: int = 1) -> bytes:
        """The answer; a 503 is asked again up to `tries` times, since on a busy machine torch is not loaded in time."""
        how = "GET" if self.body is None else "POST"
        for _ in range(tries):
            connection.request(how, self.path, self.body, {"content-type": self.kind} if self.kind else {})
            response = connection.getresponse()
            content = response.read()
            if response.status != 503:
                break
        assert response.status == 200, content[:500]
        return content


def upload(port: int, source_id: str, connection: http.client.HTTPConnection) -> Question:
    """The source's own cutout, sent back."""
    blob = Question(port, f"/v1/sources/{source_id}/cutout?format=fits").ask(connection)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.fits"\r\n\r\n'
    return Question(
        port, "/v1/cutouts/neighbours?k=10", head + blob + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"
    )


def one_client(asked: dict[str, list[Question]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every question, in turn."""
    connections: dict[int, http.client.HTTPConnection] = {}
    found: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(-5, rounds):
        for name, questions in asked.items():
            question = questions[turn % len(questions)]
            connection = connections.setdefault(question.port, http.client.HTTPConnection("127.0.0.1", question.port))
            if turn < 0:  # the first upload loads torch, and idle connections are closed meanwhile
                connection.close()
            began = time.perf_counter()
            question.ask(connection, tries=10 if turn < 0 else 1)
            if turn >= 0:
                found[name].append(1000 * (time.perf_counter() - began))
    return found


def overlap(own: list[Question], theirs: list[Question], n: int = 50) -> float:
    """The share of our ten nearest that clip-retrieval finds, too, over `n` sources; not who is right."""
    found = []
    for one, other in zip(own[:n], theirs[:n], strict=True):
        (ours_, theirs_) = (
            json.loads(question.ask(http.client.HTTPConnection("127.0.0.1", question.port)))
            for question in (one, other)
        )
        names = {neighbour["source_id"] for neighbour in ours_["neighbours"]}
        found.append(len(names & {line["image_path"] for line in theirs_}) / len(names))
    return statistics.mean(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 sources, short rounds; no figure to publish")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a wanted number is missed")
    parser.add_argument("--sources", type=int, help="1,000,000 by default")
    parser.add_argument("--rounds", type=int, help="questions of each kind at one client, 500 by default")
    parser.add_argument("--seconds", type=float, help="of each round of saturation, 4 by default")
    parser.add_argument("--clip-python", type=Path, help="a Python that has clip-retrieval; without, it is left out")
    parser.add_argument("--out", type=Path, default=Path("bench-out/serve"))
    arguments = parser.parse_args()
    usual = (50_000, 100, 1.0) if arguments.quick else (1_000_000, 500, 4.0)
    given = (arguments.sources, arguments.rounds, arguments.seconds)
    sources, rounds, seconds = (one or other for one, other in zip(given, usual, strict=True))
    out: Path = arguments.out.resolve()
    large, small = out / f"{sources}" / "shelf", out / "images" / "shelf"
    for root, make in ((large, lambda: make_shelf(large, sources)), (small, lambda: make_images(small))):
        if not (root / "generations").is_dir():
            shutil.rmtree(root.parent, ignore_errors=True)
            root.parent.mkdir(parents=True)
            make()
    from redshelf.service.shelf import open_shelf

    shelf, pictures = open_shelf(large, hashes=False), open_shelf(small, hashes=False)
    index = shelf.layout.index("wide", shelf.encoder("wide").published.revision, len(shelf))
    columns = shelf.layout.columns(shelf.generation.number)
    uploaded = pictures.source_id(0)
    chosen = [f"c{n:08d}" for n in np.random.default_rng(1).integers(0, sources, 997)]
    near = [f"/v1/sources/{name}/neighbours?k={K}" for name in chosen]
    plain = [f"/bare/{name}?k={K}" for name in chosen]
    radius = (1.2 * 1000 / sources / np.pi) ** 0.5
    python, clip_folder = arguments.clip_python, large.parent / "clip"
    if python is not None and not (clip_folder / "image.index").is_file():
        shutil.rmtree(clip_folder, ignore_errors=True)
        make_clip(python, shelf, clip_folder)
    # one more than the neighbours: it finds the vector itself, too
    vectors = shelf.encoder("wide").vectors(np.array([shelf.row(name) for name in chosen])).tolist()
    cone = f"/scs?RA=150.5&DEC=2.5&SR={radius}&MAXREC=1000"
    del shelf, pictures
    print(f"{sources} x {DIM}; load of the machine before: {os.getloadavg()[0]:.1f}\n")
    missed: list[str] = []

    def wanted(what: str, found: float, limit: float, *, least: bool = False) -> None:
        if limit and (found < limit if least else found > limit):
            missed.append(f"{what}: {found:.2f}, {limit:g} wanted")

    with ExitStack() as stack:
        server = stack.enter_context(ours(large, 1, out / "ours1.log"))
        other = stack.enter_context(ours(small, 1, out / "images.log"))
        peer = stack.enter_context(bare(index, columns, 1, out / "bare1.log"))
        if python is not None:
            rival = stack.enter_context(clip(python, clip_folder, out / "clip.log"))
        time.sleep(LOADED_S)
        with_images = http.client.HTTPConnection("127.0.0.1", other.port)
        asked = {
            "neighbours by id": [Question(server.port, path) for path in near],
            "the bare route": [Question(peer.port, path) for path in plain],
            "redshift by id, with its density": [
                Question(server.port, f"/v1/sources/{name}/redshift?encoder=photometry") for name in chosen
            ],
            "uploaded cutout": [upload(other.port, uploaded, with_images)],
            "/scs, 1,000 rows": [Question(server.port, cone)],
            "/healthz": [Question(server.port, "/healthz")],
        }
        if python is not None:
            asked[CLIP] = [
                Question(rival.port, "/knn-service", question(one, K + 1), "application/json") for one in vectors
            ]
        answered = one_client(asked, rounds)
        print("| one client, one worker | median ms | 99% ms |\n|---|---|---|")
        for name, times in answered.items():
            middle, high = statistics.median(times), float(np.quantile(times, 0.99))
            print(f"| {name} | {middle:.2f} | {high:.2f} |")
            wanted(f"{name}, median ms", middle, WANTED.get(name, (0, 0))[0])
            wanted(f"{name}, 99% ms", high, WANTED.get(name, (0, 0))[1])
        if python is not None:
            ratio = statistics.median(answered["neighbours by id"]) / statistics.median(answered[CLIP])
            shared = overlap(asked["neighbours by id"], asked[CLIP])
            print(f"\nour median over that of clip-retrieval: {ratio:.3f}; of our ten it finds {10 * shared:.1f}")
            wanted("median over that of clip-retrieval", ratio, WANTED_CLIP)
        print(f"\nstart to ready: {server.ready_s:.1f} s")
        wanted("start to ready, s", server.ready_s, WANTED_READY_S)
    print(f"\n| {CONNECTIONS} connections | neighbours by id, a second | the bare route | ratio |\n|---|---|---|---|")
    for workers in (1, 2):
        with (
            ours(large, workers, out / f"ours{workers}.log") as server,
            bare(index, columns, workers, out / f"bare{workers}.log") as peer,
        ):
            time.sleep(LOADED_S)  # until the second worker answers too
            pairs = []
            for _ in range(ROUNDS):
                pairs.append((saturation(server.port, near, seconds), saturation(peer.port, plain, seconds)))
        mine, theirs = (statistics.median(one) for one in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {workers} worker{'s' * (workers > 1)} | {mine:.0f} | {theirs:.0f} | {ratio:.2f} |")
        if workers == 2:
            wanted("saturation of 2 workers over that of the bare route", ratio, WANTED_RATIO, least=True)
    with ours(large, 4, out / "ours4.log") as server:
        saturation(server.port, near, ROUNDS * seconds)
        memory = server.pss_mb()
    print(f"\nmemory of 4 workers, shared pages counted once (PSS): {memory:.0f} MB")
    wanted("PSS of 4 workers, MB", memory, SHARED_MB + 4 * WORKER_MB)
    print(f"load of the machine after: {os.getloadavg()[0]:.1f}")
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
