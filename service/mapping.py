"""`redshelf map --encoder NAME`: a place in two dimensions for every source of the newest generation.

UMAP of a sample where the `map` extra is installed, else principal components; `sky` is the plane of right ascension
and declination. The places of an encoder's revision are kept from one generation to the next.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from redshelf.indexing import generation, ivf, morton, pyramid, sample
from redshelf.indexing.files import alone, manifest, sha256, write_bytes, write_npy
from redshelf.indexing.generation import FileFacts
from redshelf.indexing.layout import Layout
from redshelf.indexing.morton import Floats, Ints, Keys
from redshelf.indexing.pyramid import Values
from redshelf.models import plane
from redshelf.models.errors import BadInput, NotFound, RedshelfError, nearest
from redshelf.models.plane import Method
from redshelf.service import maps, places
from redshelf.service.maps import COLOURS, SKY, Manifest, Sky, values_of
from redshelf.service.redshift import REASONS, choose, estimate, is_refused, judge
from redshelf.service.shelf import OpenShelf, open_shelf

SAMPLE = 100_000  # vectors that two dimensions are found with
FEWEST = 10  # vectors that UMAP can begin with
SUPPORTED = 20_000  # sources that are asked whether labels stand behind their redshift: a second for about 1,000
MARGIN = 0.02  # of the map around its sources
HOME = 0.005  # of the sources on each side that the first view leaves out
SCALED = 100_000  # sources whose values say where a scale ends
ENDS = {"error": (None, 0.95)}  # quantiles of the values; from 0 where the lower one is None
BLOCK = 4096

Progress = Callable[[int], object]


@dataclass(frozen=True)
class MapReport:
    """What was made. `method`: how the two dimensions were found; `kept`: whether they are those of an older map."""

    encoder: str
    revision: str
    generation: int
    method: str
    kept: bool
    sources: int
    without_vector: int
    colours: list[str]
    bytes: int
    folder: Path


@dataclass(frozen=True, eq=False)
class Placed:
    """Where rows (n,) are, by their keys (n,), and how that was found."""

    rows: Ints
    keys: Keys
    method: str
    sample: int = 0
    shares: list[float] = field(default_factory=list)
    sky: Sky | None = None
    kept: bool = False


def square(points: Floats, *, stretched: bool = False) -> Floats:
    """Points (n, 2) moved and scaled into the unit square, with a margin around them: alike along both axes, or each
    axis to its whole length."""
    low, high = points.min(axis=0), points.max(axis=0)
    side = (high - low) * (1 + 2 * MARGIN)
    side = side if stretched else np.full(2, side.max())
    return np.asarray((points - (low + high) / 2) / np.where(side > 0, side, 1.0) + 0.5)


def on_sky(shelf: OpenShelf) -> Placed:
    """Every source where it is on the sky: east to the left, north up, RA shortened as at the middle of the survey."""
    rows = np.flatnonzero(~shelf.columns["deleted"])
    found = places.footprint(shelf)
    if not found.n:
        raise NotFound(f"survey {shelf.info.survey} has no source that is not deleted: there is nothing to map")
    width = (found.ra_high - found.ra_low) % 360
    middle = Sky(ra_deg=(found.ra_low + width / 2) % 360, dec_deg=(found.dec_low + found.dec_high) / 2, side_deg=1)
    east = (np.asarray(shelf.columns["ra"])[rows] - middle.ra_deg + 180) % 360 - 180
    shorter = float(np.cos(np.radians(middle.dec_deg)))
    side = max(width * shorter, found.dec_high - found.dec_low) * (1 + 2 * MARGIN) or 1.0
    points = np.column_stack([-east * shorter, middle.dec_deg - np.asarray(shelf.columns["dec"])[rows]]) / side + 0.5
    sky = middle.model_copy(update={"side_deg": side})
    return Placed(rows, morton.keys_of(points), SKY, len(rows), sky=sky)


def _kept(shelf: OpenShelf, name: str, rows: Ints, method: str, seed: int) -> Placed | None:
    """The places of an older map of the same vectors, found in the same way; None without one."""
    revision = shelf.encoder(name).published.revision
    for folder in reversed(maps.stored(shelf.layout, name=name)):
        try:
            told = maps.read(folder)
            if (told.revision, told.rows, told.method, told.seed) != (revision, len(shelf), method, seed):
                continue
            opened = maps.open_map(folder)
        except RedshelfError:
            continue
        place = np.asarray(opened.place)[rows]
        if (place >= 0).all():
            return Placed(rows, opened.pyramid.keys[place], method, told.sample, told.shares, kept=True)
    return None


def in_space(shelf: OpenShelf, name: str, method: Method, seed: int, progress: Progress) -> Placed:
    """Every source that has a vector, in two dimensions of an encoder's space."""
    index = shelf.encoder(name).index
    rows = np.flatnonzero(index.known)
    if not len(rows):
        raise NotFound(f"no source has a vector of {name}: there is nothing to map")
    if (kept := _kept(shelf, name, rows, method, seed)) is not None:
        return kept
    chosen = sample.spread(index.known, SAMPLE, seed=seed)
    vectors = index.take(chosen).astype(np.float32)
    found = plane.by_umap(vectors, seed=seed) if method == "umap" else plane.components(vectors)
    points = np.empty((len(index.known), 2), dtype=np.float32)
    for some, block in ivf.blocks(index.flat, index.known, start=0, past=len(index.known)):
        points[some] = found.place(block)
        progress(len(some))
    if isinstance(found, plane.Neighbourhood):
        points[chosen] = found.places  # where the sample was put, and not where its neighbours are
    shares = found.shares.tolist() if isinstance(found, plane.Components) else []
    # the second component varies less than the first, and would leave most of the map empty
    within = square(points[rows].astype(np.float64), stretched=method == "pca")
    return Placed(rows, morton.keys_of(within), method, len(chosen), shares)


def _support(shelf: OpenShelf, rows: Ints, seed: int, progress: Progress) -> npt.NDArray[np.int8]:
    """1 and 0 (n,) by whether labels stand behind the redshift of each of `rows`, by the default fit; -1 for those
    that were not asked, at most `SUPPORTED` being, and for those that have no redshift."""
    found = np.full(len(rows), -1, dtype=np.int8)
    if shelf.generation.default_redshift not in shelf.redshifts:
        return found
    fit, estimator = choose(shelf, None, None)
    asked = sample.spread(fit.known(rows), SUPPORTED, seed=seed)
    for start in range(0, len(asked), BLOCK):
        at = asked[start : start + BLOCK]
        flags = np.column_stack(
            [judge(shelf, fit, rows[at]), estimate(fit, rows[at], estimator=estimator).support.flags]
        )
        assert flags.shape[1] == len(REASONS)
        found[at] = np.where(is_refused(flags), -1, ~flags.any(axis=1))
        progress(len(at))
    return found


def _scale(colour: str, values: Values) -> tuple[float, float] | None:
    """The ends of the scale of a colouring; None where no source has a value."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    if COLOURS[colour] == "share":
        return 0.0, 1.0
    low, high = ENDS.get(colour, (0.01, 0.99))
    ends = (0.0 if low is None else float(np.quantile(known, low)), float(np.quantile(known, high)))
    return ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[0] + 0.5)


def _home(keys: Keys) -> tuple[float, float, float, float]:
    """The box that holds nearly all sources, with a margin."""
    points = morton.positions_of(keys[np.linspace(0, len(keys) - 1, min(len(keys), SCALED)).astype(np.int64)])
    low, high = np.quantile(points, [HOME, 1 - HOME], axis=0)
    margin = max(2 * MARGIN * float((high - low).max()), 2.0**-12)
    low, high = np.clip(low - margin, 0, 1), np.clip(high + margin, 0, 1)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def method_of(asked: str | None, vectors: int) -> Method:
    """How two dimensions are found: as asked, by default UMAP where it is installed and there is enough for it."""
    if asked is None:
        return "umap" if plane.has_umap() and vectors >= FEWEST else "pca"
    for known in get_args(Method):
        if asked == known:
            return known  # type: ignore[no-any-return]
    raise BadInput(f"method {asked!r} is unknown; {nearest(asked, get_args(Method))}")


def make(
    root: Path, encoder: str | None = None, *, method: str | None = None, seed: int = 0, progress: bool = False
) -> MapReport:
    """Make the map of an encoder (None: the default one) or of the sky, of the newest generation.

    `NotFound` for an unknown encoder and where nothing is published, `BadInput` for an unknown method, or UMAP without
    the `map` extra, `Conflict` where another process makes a map of this shelf.
    """
    layout = Layout(root)
    published = generation.read(layout)
    name = encoder or published.default_encoder
    known = [facts.name for facts in published.encoders]
    if name != SKY and name not in known:
        raise NotFound(f"no encoder {name!r} is published here; {nearest(name, [*known, SKY])}")
    if name == SKY and method is not None:
        raise BadInput(f"method {method!r} is of an encoder's space: the sky has its own two dimensions")
    needed = {*([] if name == SKY else [name]), *(published.default_redshift or "").split("+")}
    with alone(layout.work("map.lock"), f"another process makes a map of {root}: wait until it has ended"):
        shelf = open_shelf(root, published.number, encoders=[one for one in known if one in needed])
        return _make(shelf, name, method, seed, progress)


def _make(shelf: OpenShelf, name: str, method: str | None, seed: int, shown: bool) -> MapReport:
    from tqdm import tqdm

    def bar(total: int, what: str) -> Any:
        return tqdm(total=total, unit=" sources", desc=what, disable=not shown, delay=2.0)

    if name == SKY:
        placed = on_sky(shelf)
    else:
        findable = shelf.encoder(name).index.findable
        with bar(findable, f"map {name}") as placing:
            placed = in_space(shelf, name, method_of(method, findable), seed, placing.update)
    order = np.argsort(placed.keys, kind="stable")
    keys, rows = placed.keys[order], placed.rows[order]
    with bar(min(SUPPORTED, len(rows)), "support") as asking:
        support = _support(shelf, rows, seed, asking.update)

    def values(colour: str, at: slice | Ints) -> Values:
        return values_of(shelf, colour, rows[at], support[at])

    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SCALED)).astype(np.int64))
    support_known = np.flatnonzero(support >= 0)
    scales = {name: _scale(name, values(name, support_known if name == "support" else some)) for name in COLOURS}
    if scales["labelled"] is not None and not np.isfinite(np.asarray(shelf.columns["z_spec"])).any():
        scales["labelled"] = None
    for colour in ("z_spec", "error"):  # few sources may have one, and none of some
        scales[colour] = _scale(colour, values(colour, slice(None)))
    colours = {name: ends for name, ends in scales.items() if ends is not None}
    with bar(len(rows), "pixels") as drawing:
        levels = pyramid.build(keys, {name: COLOURS[name] for name in colours}, values, progress=drawing.update)
    return _write(shelf, name, placed, seed, keys, rows, support, levels, colours)


def _write(
    shelf: OpenShelf,
    name: str,
    placed: Placed,
    seed: int,
    keys: Keys,
    rows: Ints,
    support: npt.NDArray[np.int8],
    levels: dict[int, pyramid.Level],
    colours: dict[str, tuple[float, float]],
) -> MapReport:
    """Write a map whole, and remove the one that it takes the place of."""
    layout, number, n = shelf.layout, shelf.generation.number, len(shelf)
    revision = "" if name == SKY else shelf.encoder(name).published.revision
    work = layout.work(f"map.{name}")
    shutil.rmtree(work, ignore_errors=True)  # what a killed one has left
    place = np.full(n, -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    short = np.int32 if n < 1 << 31 else np.int64
    arrays = {maps.KEYS: keys, maps.ROWS: rows.astype(short), maps.PLACE: place.astype(short), maps.SUPPORT: support}
    for file, array in arrays.items():
        write_npy(work / f"{file}.npy", array)
    pyramid.write(work, levels)
    known = {
        colour: int((support >= 0).sum()) if colour == "support" else _count(shelf, colour, rows) for colour in colours
    }
    found = Manifest(
        name=name,
        revision=revision,
        generation=number,
        generation_sha256=sha256(generation.path_of(layout, number)),
        method=placed.method,  # type: ignore[arg-type]
        seed=seed,
        sample=placed.sample,
        shares=placed.shares,
        rows=n,
        sources=len(rows),
        without_vector=shelf.n_sources - len(rows),
        home=_home(keys),
        peaks=pyramid.peaks(keys),
        zooms=len(levels),
        colours=colours,
        known=known,
        magnitude_band=shelf.info.reference_band,
        sky=placed.sky,
        created=time.time(),
        files={file: FileFacts(**facts) for file, facts in manifest(work, [work]).items()},
    )
    write_bytes(work / maps.MANIFEST, found.model_dump_json(indent=1).encode() + b"\n")
    folder = layout.maps / f"{number}" / f"{name}.{maps.digest_of(found)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = maps.stored(layout, number=number, name=name)
    work.replace(folder)
    for other in before:  # a server that has one open keeps its files
        shutil.rmtree(other, ignore_errors=True)
    size = sum(facts.size for facts in found.files.values())
    told = {"method": placed.method, "kept": placed.kept, "sources": len(rows), "without_vector": found.without_vector}
    return MapReport(name, revision, number, colours=list(colours), bytes=size, folder=folder, **told)  # type: ignore[arg-type]


def _count(shelf: OpenShelf, colour: str, rows: Ints) -> int:
    """How many sources a colouring says something of; of labels, how many there are."""
    values = values_of(shelf, "z_spec" if colour == "labelled" else colour, rows)
    return int(np.isfinite(values).sum())
