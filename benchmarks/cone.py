"""What a list of 1,000 sources takes in every format, from a real server, one client on one connection.

    python benchmarks/cone.py [--quick] [--check] [--out bench-out/cone]

A catalogue of sources at random over a square degree, three bands, no images. In turn, so that a busy machine slows all
of them alike; beside them what astropy's own VOTable writer takes for the same rows, the server apart.
"""

from __future__ import annotations

import argparse
import http.client
import math
import statistics
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from common import Server

ROWS, WANTED_MS = 1000, 60.0
WHOLE_DEG = 0.5  # the radius of a cone that holds most of the catalogue


def questions(sources: int) -> dict[str, str]:
    """Name -> address. The cone holds about 1,200 of the sources, or most of them."""
    radius = math.sqrt(1.2 * ROWS / sources / math.pi)
    at = f"RA=150.5&DEC=2.5&MAXREC={ROWS}&SR="
    cone = f"/v1/cone?ra_deg=150.5&dec_deg=2.5&radius_arcsec={3600 * radius}&n={ROWS}"
    return {
        "/scs, TABLEDATA": f"/scs?{at}{radius}",
        "/scs, TABLEDATA, VERB=3": f"/scs?{at}{radius}&VERB=3",
        "/scs, BINARY2": f"/scs?{at}{radius}&RESPONSEFORMAT=votable/b2",
        "/v1/cone, JSON": cone,
        **{f"/v1/cone, {name}": f"{cone}&format={name}" for name in ("votable", "csv", "parquet", "fits")},
        "the first 1,000 of half a degree": f"/scs?{at}{WHOLE_DEG}",
    }


SURVEY = """
[survey]
name = "cone"
[catalogue]
path = "catalogue.fits"
id = "ID"
ra = "RA"
dec = "DEC"
""" + "".join(
    f'[[bands]]\nname = "{band}"\nwavelength_nm = {nm}\nflux = "F_{band}"\nflux_error = "E_{band}"\nunit = "uJy"\n'
    for band, nm in (("g", 480), ("r", 620), ("i", 770))
)


def make_shelf(folder: Path, sources: int) -> Path:
    """A published shelf of `sources`, made once."""
    from astropy.table import Table

    from redshelf.service.embedding import embed
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish

    root = folder / f"shelf-{sources}"
    if (root / "generations").is_dir():
        return root
    rng = np.random.default_rng(0)
    table = Table({"ID": [f"c{i:08d}" for i in range(sources)]})
    table["RA"], table["DEC"] = rng.uniform(150, 151, sources), rng.uniform(2, 3, sources)
    for band in "gri":
        table[f"F_{band}"], table[f"E_{band}"] = rng.gamma(2, 3, sources), np.full(sources, 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    table.write(folder / "catalogue.fits", overwrite=True)
    (folder / "survey.toml").write_text(SURVEY)
    ingest(folder / "survey.toml", root)
    embed(root, encoder="photometry")
    build_index(root, encoder="photometry")
    publish(root)
    return root


def milliseconds(ask: Callable[[], object]) -> float:
    start = time.perf_counter()
    ask()
    return 1000 * (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 sources instead of 1,000,000")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 where a VOTable takes {WANTED_MS:.0f} ms")
    parser.add_argument("--out", type=Path, default=Path("bench-out/cone"))
    arguments = parser.parse_args()
    sources, rounds = (20_000, 30) if arguments.quick else (1_000_000, 100)
    shelf = make_shelf(arguments.out, sources)
    asked = questions(sources)
    found: dict[str, list[float]] = {name: [] for name in asked}
    sizes: dict[str, int] = {}
    with Server(shelf) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)

        def ask(path: str) -> bytes:
            connection.request("GET", path)
            return connection.getresponse().read()

        for path in asked.values():
            ask(path)
        for _ in range(rounds):
            for name, path in asked.items():
                found[name].append(milliseconds(lambda path=path: ask(path)))  # type: ignore[misc]
                sizes[name] = sizes.get(name) or len(ask(path))
        document = ask(asked["/scs, TABLEDATA"])
        connection.close()
    assert document.count(b"<TR>") == ROWS
    print(f"{sources} sources; {ROWS} of a cone, one client, {rounds} rounds in turn\n")
    print("| question | median ms | 95% ms | kB |\n|---|---|---|---|")
    for name, times in found.items():
        print(
            f"| {name} | {statistics.median(times):.1f} | {np.quantile(times, 0.95):.1f} | {sizes[name] / 1000:.0f} |"
        )
    from astropy.io.votable import parse

    same = parse(BytesIO(document))
    for how in ("tabledata", "binary2"):
        times = [milliseconds(lambda how=how: same.to_xml(BytesIO(), tabledata_format=how)) for _ in range(9)]  # type: ignore[misc]
        print(f"| astropy's writer alone, {how} | {statistics.median(times):.1f} | | |")
    slow = [name for name in asked if "/scs" in name and statistics.median(found[name]) >= WANTED_MS]
    for name in slow:
        print(f"missed: {name} takes {statistics.median(found[name]):.1f} ms, {WANTED_MS:.0f} wanted")
    return int(bool(slow) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
