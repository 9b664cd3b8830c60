"""What a shelf was made from: hashes that tell whether the survey, or the images of one tile, have changed since."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from redshelf.indexing import imaging
from redshelf.indexing.files import manifest, read_json, sha256, write_json
from redshelf.indexing.imaging import TilePaths
from redshelf.indexing.layout import Layout
from redshelf.indexing.survey import Survey
from redshelf.models.errors import BadInput

SAMPLE_BLOCKS, SAMPLE_BLOCK_BYTES = 16, 65_536  # of an image: 1 MiB of however many GB


@dataclass(frozen=True)
class Origin:
    """`fingerprint` is of the whole survey without its labels, `tiles` {name: sha256} of the images of each tile and of
    what the survey file says about how they are read."""

    fingerprint: str
    tiles: dict[str, str]


def sampled_sha256(path: Path) -> str:
    """sha256 over the first block of a file (a FITS header), its last and 14 between them, evenly spread; that is the
    whole of a file of up to 1 MiB. Another calibration changes every pixel, and so every block."""
    last = max(0, path.stat().st_size - SAMPLE_BLOCK_BYTES)
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        for block in range(SAMPLE_BLOCKS):
            handle.seek(last * block // (SAMPLE_BLOCKS - 1))
            digest.update(handle.read(SAMPLE_BLOCK_BYTES))
    return digest.hexdigest()


def _hash(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _reading(survey: Survey) -> Any:
    """What of a survey file the pixels depend on, the files apart."""
    bands = [[b.name, b.image_hdu, b.image_zero_point, b.zero_point, b.saturation] for b in survey.bands]
    stamps = None if survey.stamps is None else survey.stamps.model_dump(mode="json", exclude={"path"})
    return [survey.survey.pixel_scale_arcsec, survey.survey.cutout_px, bands, stamps]


def _images(survey: Survey, tiles: TilePaths) -> list[Any]:
    """[tile, what, name, size and hash] of every image, weight, mask and archive of stamps."""
    facts = cache(lambda file: [file.name, file.stat().st_size, sampled_sha256(file)])  # tiles may share a mask
    return [[*what, *facts(file)] for what, file in imaging.inputs(survey, tiles)]


def _catalogue(survey: Survey) -> Any:
    """The hash of the catalogue's bytes; `BadInput` where there is none."""
    path = survey.resolve(survey.catalogue.path)
    if not path.exists():
        raise BadInput(f"catalogue {path} does not exist")
    return manifest(path, [path]) if path.is_dir() else sha256(path)


def _by_row(survey: Survey) -> bool:
    """Whether the catalogue says which stamp is whose."""
    return survey.stamps is not None and survey.stamps.ids is None


def _by_tile(survey: Survey, tiles: TilePaths, images: list[Any], content: Any) -> dict[str, str]:
    by_tile: dict[str, list[Any]] = {name: [_reading(survey), content if _by_row(survey) else None] for name in tiles}
    for image in images:
        by_tile[image[0]].append(image)
    return {name: _hash(facts) for name, facts in by_tile.items()}


def of(survey: Survey, tiles: TilePaths) -> Origin:
    """The catalogue's bytes, the survey file, and the name, size and `sampled_sha256` of every image, weight, mask and
    archive of stamps: 1 MiB of each is read, so a change of a few pixels in a large one may pass unseen (not in an npz,
    whose end holds the checksums of its arrays)."""
    document = survey.model_dump(mode="json", exclude={"labels"} | (set() if survey.stamps else {"stamps"}))
    images, content = _images(survey, tiles), _catalogue(survey)
    return Origin(_hash([document, images, content]), _by_tile(survey, tiles, images, content))


def of_tiles(survey: Survey, tiles: TilePaths) -> dict[str, str]:
    """`Origin.tiles` of some tiles alone."""
    return _by_tile(survey, tiles, _images(survey, tiles), _catalogue(survey) if _by_row(survey) else None)


def write(file: Path, origin: Origin) -> None:
    """Write it whole."""
    write_json(file, asdict(origin))


def load(file: Path) -> Origin:
    """What `write` has written."""
    return Origin(**read_json(file))


def read(layout: Layout) -> Origin:
    """What the last ingest that ended has made the shelf from. Where it did not write that down, as earlier versions of
    redshelf did not, no tile is known, so that an update cuts them all again."""
    return load(layout.origin_file) if layout.origin_file.is_file() else Origin(layout.read_info().fingerprint, {})
