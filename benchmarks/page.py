"""The page that astronomers browse, over HTTP: a thumbnail, a grid of 60 with its pictures, what the first load weighs.

    python benchmarks/page.py [--quick] [--check] [--large SHELF] [--out bench-out/page]

A simulated survey of 4,000 sources in six bands with images. Thumbnails are each asked for once, of another source, on
one connection; a grid is the page and then its pictures, over six connections as a browser has them, of another source
each time. One client and the server share the machine.

`--large`: the pages of another shelf besides, without pictures: that of a million sources which `map.py` leaves, once
`redshelf fit` and `redshelf publish` have given it redshifts.
"""

from __future__ import annotations

import argparse
import http.client
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from threading import local

import numpy as np
from common import Server

GRID, CONNECTIONS = 60, 6
THUMBNAIL_MS, GRID_MS, FIRST_KB = 10.0, 300.0, 150.0


def make_shelf(folder: Path, sources: int) -> Path:
    """A published shelf with images and redshifts, made once."""
    from redshelf.indexing.simulate import simulate
    from redshelf.service.embedding import embed
    from redshelf.service.fit import fit
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish

    root, survey = folder / f"shelf-{sources}", folder / f"survey-{sources}"
    if not (root / "generations").is_dir():
        if not (survey / "survey.toml").is_file():
            simulate(survey, sources=sources, seed=1)
        ingest(survey / "survey.toml", root)
        embed(root, encoder="photometry")
        build_index(root, encoder="photometry")
        fit(root, encoder="photometry")
        publish(root)
    return root


def p95(times: list[float]) -> float:
    return float(np.quantile(times, 0.95))


class Browser:
    """What asks one server over `CONNECTIONS` connections, each a thread's own."""

    def __init__(self, port: int) -> None:
        self._port, self._mine = port, local()
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    def ask(self, path: str) -> bytes:
        """The body of one answer."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            self._mine.connection.request("GET", path)
            answer = self._mine.connection.getresponse()
        except ConnectionError:  # the server has closed one that was idle
            self._mine.connection.close()
            self._mine.connection.request("GET", path)
            answer = self._mine.connection.getresponse()
        content: bytes = answer.read()
        assert answer.status == 200, (path, content[:300])
        return content

    def milliseconds(self, path: str) -> float:
        """Until one answer is there."""
        began = time.perf_counter()
        self.ask(path)
        return 1000 * (time.perf_counter() - began)

    def page(self, path: str) -> tuple[float, float, int]:
        """Milliseconds until the page is there, until all of its pictures are, and how many these are."""
        began = time.perf_counter()
        text = self.ask(path).decode()
        there = time.perf_counter()
        pictures = [unescape(one) for one in re.findall(r'<img[^>]* src="(/v1/[^"]+)"', text)]
        list(self._pool.map(self.ask, pictures))
        return 1000 * (there - began), 1000 * (time.perf_counter() - began), len(pictures)


def first_load(browser: Browser) -> tuple[float, list[str]]:
    """Kilobytes of the first page with its styles and scripts, pictures apart; and what it asks of other hosts."""
    text = browser.ask("/").decode()
    asked = re.findall(r'<(?:link|script)[^>]*(?:href|src)="([^"]+)"', text)
    own = [one for one in asked if one.startswith("/")]
    size = len(text) + sum(len(browser.ask(one)) for one in own)
    return size / 1000, [one for one in asked if not one.startswith(("/", "data:"))]


def pages_of(shelf: Path, n: int) -> dict[str, list[float]]:
    """Milliseconds of the pages of a shelf, each of `n` sources of the sky's order, after a first one of its kind."""
    from redshelf.service.shelf import open_shelf

    opened = open_shelf(shelf, hashes=False)
    rows = np.random.default_rng(0).permutation(len(opened))[: n + 1]
    ids = [opened.source_id(int(row)) for row in rows]
    ra, dec = (np.asarray(opened.columns[name])[rows] for name in ("ra", "dec"))
    asked = {
        "the first page": ["/"] * (n + 1),
        "a source": [f"/source/{one}" for one in ids],
        f"a grid of {GRID}, pictures apart": [f"/similar?like={one}&k={GRID}" for one in ids],
        "a grid within 0.2 degrees": [
            f"/similar?like={one}&k={GRID}&ra={x:.5f}&dec={y:.5f}&radius_arcsec=720"
            for one, x, y in zip(ids, ra, dec, strict=True)
        ],
    }
    found: dict[str, list[float]] = {}
    with Server(shelf) as server:
        browser = Browser(server.port)
        for name, paths in asked.items():
            browser.ask(paths[0])
            found[name] = [browser.milliseconds(path) for path in paths[1:]]
    return found


def table(found: dict[str, list[float]]) -> str:
    rows = [f"| {name} | {statistics.median(times):.1f} | {p95(times):.1f} |" for name, times in found.items()]
    return "\n".join(["| what | median ms | 95% ms |", "|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400 sources instead of 4,000")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a number is missed")
    parser.add_argument("--large", type=Path, metavar="SHELF", help="the pages of this one, too")
    parser.add_argument("--out", type=Path, default=Path("bench-out/page"))
    arguments = parser.parse_args()
    sources, n_thumbnails, n_grids = (400, 100, 20) if arguments.quick else (4_000, 1_000, 100)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shelf = make_shelf(arguments.out, sources)
    ids = [f"SIM{number + 1:08d}" for number in np.random.default_rng(0).permutation(sources)]
    with Server(shelf) as server:
        browser = Browser(server.port)
        browser.page(f"/similar?like={ids[-1]}&k={GRID}")
        for _ in range(8):  # while the server loads in the background what questions need
            browser.ask("/healthz")
            time.sleep(1)
        thumbnails = [browser.milliseconds(f"/v1/sources/{one}/cutout?format=png") for one in ids[:n_thumbnails]]
        grids = [browser.page(f"/similar?like={one}&k={GRID}") for one in ids[-n_grids - 1 : -1]]
        size, elsewhere = first_load(browser)
    alone, whole, counts = ([one[part] for one in grids] for part in range(3))
    print(f"{sources} sources, {n_thumbnails} thumbnails, {n_grids} grids of {GRID} ({min(counts)} pictures or more)\n")
    times = {
        "a thumbnail, asked for the first time": thumbnails,
        f"a grid of {GRID}: the page": alone,
        f"a grid of {GRID}: with all its pictures": whole,
    }
    print(table(times))
    print(f"\nfirst load, pictures apart: {size:.0f} kB; asked of other hosts: {len(elsewhere)}")
    if arguments.large is not None:
        print(f"\n{arguments.large.resolve().parent.name}\n")
        print(table(pages_of(arguments.large, 20 if arguments.quick else 200)))
    faults = []
    if statistics.median(thumbnails) > THUMBNAIL_MS:
        faults.append(f"a thumbnail takes {statistics.median(thumbnails):.1f} ms, wanted {THUMBNAIL_MS:g}")
    if p95(whole) > GRID_MS:
        faults.append(f"95% of grids take {p95(whole):.0f} ms with their pictures, wanted {GRID_MS:g}")
    if size > FIRST_KB or elsewhere:
        faults.append(f"the first load weighs {size:.0f} kB, wanted {FIRST_KB:g}, and asks {elsewhere} elsewhere")
    for fault in faults:
        print(f"MISSED {fault}")
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
