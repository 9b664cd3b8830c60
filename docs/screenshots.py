"""The pictures of the page in the documentation, taken anew: `make screenshots`, with Debian's chromium.

    python docs/screenshots.py SHELF [--study DIR] [--out docs/pages] [--only NAME] [--all]

Serves SHELF on loopback and photographs each page wide and light, and narrow and dark; with `--all` in every way.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import numpy as np  # noqa: E402
import server as servers  # noqa: E402
from chromium import CHROMIUM, Page, browser  # noqa: E402

from redshelf.service.shelf import open_shelf  # noqa: E402

WIDE, NARROW = 1280, 390
WAYS = [("light", "wide"), ("dark", "narrow"), ("dark", "wide"), ("light", "narrow")]
TALLEST = 2400


def brightest(shelf: Path) -> list[str]:
    """Two bright galaxies with a spectroscopic redshift, which are the best to look at."""
    opened = open_shelf(shelf)
    columns = opened.columns
    magnitude = np.array(columns["magnitudes"][:, columns["magnitudes"].shape[1] // 2], dtype=np.float64)
    magnitude[~np.isfinite(columns["z_spec"])] = np.nan
    rows = np.argsort(magnitude)[[80, 120]]
    return [opened.source_id(int(row)) for row in rows]


def pages(first: str, second: str, encoders: list[str]) -> dict[str, str]:
    """{name: address} of what is photographed; `first` and `second` are sources of the shelf."""
    a, b = quote(first, safe=""), quote(second, safe="")
    return {
        "home": "/",
        "similar": f"/similar?like={a}&k=24",
        "two-encoders": f"/similar?like={a}&k=12&encoder={encoders[0]}&against={encoders[-1]}",
        "examples": f"/similar?like={a}&like={b}&k=12",
        "source": f"/source/{a}?k=12",
        "map": f"/map/{encoders[-1]}?colour=z_phot",
        "upload": "/",
        "status": "/status",
        "study": "/study",
        "not-found": "/?q=nowhere",
    }


def photograph(page: Page, path: Path) -> None:
    """The whole of the page, down to `TALLEST`, as WebP."""
    page.js("for (const one of document.images) one.loading = 'eager'")
    page.wait("[...document.images].every((one) => one.complete)")
    width, height = (int(page.js(side)) for side in ("innerWidth", "document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": min(max(600, height), TALLEST), "scale": 1}
    taken = page.tell("Page.captureScreenshot", format="webp", quality=80, clip=clip, captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(taken["data"]))
    print(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shelf", type=Path)
    parser.add_argument("--study", type=Path, help="folder of a study, for /study")
    parser.add_argument("--out", type=Path, default=HERE / "pages")
    parser.add_argument("--only", help="one page alone")
    parser.add_argument("--all", action="store_true", help="both windows in both themes")
    arguments = parser.parse_args()
    if CHROMIUM is None:
        print("chromium is not installed: apt install chromium", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {} if arguments.study is None else {"study_dir": arguments.study.resolve()}
    with (
        tempfile.TemporaryDirectory() as scratch,
        servers.serve(arguments.shelf, Path(scratch), state_dir=Path(scratch) / "state", **settings) as server,
        browser(Path(scratch)) as page,
    ):
        encoders = [one["name"] for one in server.get("/v1/shelf")["encoders"]]
        first, second = brightest(arguments.shelf)
        cutout = Path(scratch) / "cutout.fits"
        address = f"http://127.0.0.1:{server.port}/v1/sources/{quote(first, safe='')}/cutout?format=fits"
        cutout.write_bytes(urlopen(address).read())
        for name, address in pages(first, second, encoders).items():
            if arguments.only in (None, name):
                for theme, window in WAYS if arguments.all else WAYS[:2]:
                    path = arguments.out / f"{name}-{theme}-{window}.webp"
                    page.look(width=WIDE if window == "wide" else NARROW, dark=theme == "dark")
                    page.open(f"http://127.0.0.1:{server.port}{address}")
                    if name == "upload":
                        page.choose("#upload input[type=file]", cutout)
                        page.leave("document.getElementById('upload').submit()")
                    photograph(page, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
