"""An open shelf around vectors that a test has made: nothing is ingested, embedded or published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann, assembly, columns
from redshelf.indexing.generation import Generation, PublishedEncoder
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models.bands import Band
from redshelf.service.shelf import OpenEncoder, OpenShelf


def open_known(
    folder: Path,
    spaces: Mapping[str, npt.NDArray[np.float16]],
    *,
    ra_deg: npt.NDArray[np.float64] | None = None,
    dec_deg: npt.NDArray[np.float64] | None = None,
    classes: npt.NDArray[np.int8] | None = None,
) -> OpenShelf:
    """Sources s0, s1, ... with vectors (N, dim) in each of `spaces`, the first of which is the default one."""
    n = len(next(iter(spaces.values())))
    rng, gone = np.random.default_rng(0), np.zeros(n, dtype=bool)
    ra = rng.uniform(150, 151, n) if ra_deg is None else ra_deg
    dec = rng.uniform(2, 3, n) if dec_deg is None else dec_deg
    unknown = np.full(n, np.nan, dtype=np.float32)
    told = {
        **columns.id_columns(np.array([f"s{i}".encode() for i in range(n)], dtype="S64"), gone),
        **columns.dec_columns(dec, gone),
        "ra": ra, "dec": dec, "z_spec": unknown, "z_phot": unknown, "z_kind": np.zeros(n, np.int8),
        "object_class": np.ones(n, np.int8) if classes is None else classes,
    }  # fmt: skip
    encoders = {}
    for name, vectors in spaces.items():
        place, dim = folder / f"{name}.{'0' * 12}" / f"{n}", vectors.shape[1]
        assembly.build(place, [vectors], rows=n, dim=dim)
        facts = PublishedEncoder(name=name, revision="0" * 12, kind="any", dim=dim, needs=[])
        encoders[name] = OpenEncoder(facts, ann.open_index(place), folder)
    published = Generation.model_construct(number=1, default_encoder=next(iter(spaces)))
    info = ShelfInfo("known", (Band("i", 770.0),))
    return OpenShelf(Layout(folder), info, published, told, encoders, {})
