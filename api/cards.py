"""The cards of a grid: what stands under each picture, and how the pictures are drawn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

import numpy as np

from redshelf.api.words import fixed, significant
from redshelf.indexing.layout import ShelfInfo
from redshelf.models.errors import RedshelfError
from redshelf.service import redshift
from redshelf.service.answers import Neighbour, RedshiftAnswer
from redshelf.service.folding import Fold, fold
from redshelf.service.pictures import default_bands
from redshelf.service.shelf import OpenShelf

Size = Literal["small", "medium", "large"]
STRETCH = 3.0
STRETCHES = {0.5: "faint light", 1.0: "fainter", 3.0: "usual", 10.0: "brighter", 30.0: "bright cores"}
WITH_INTERVAL = 300  # cards of a grid whose redshifts are asked for anew; beyond them z_phot stands alone


@dataclass(frozen=True)
class Look:
    """How pictures are drawn: `bands` as in /v1/sources/ID/cutout, None for the usual ones."""

    bands: str | None = None
    stretch: float = STRETCH
    size: Size = "medium"

    @property
    def query(self) -> str:
        """The end of a picture's address."""
        said = {"bands": self.bands, "stretch": None if self.stretch == STRETCH else f"{self.stretch:g}"}
        told = urlencode({name: value for name, value in said.items() if value is not None})
        return f"?{told}" if told else ""


@dataclass(frozen=True)
class Card:
    """One galaxy of a grid. `interval`: 68% of its density; `supported` is None where no redshift was asked for."""

    source_id: str
    distance: float | None = None
    score: float | None = None
    z_spec: float | None = None
    z_phot: float | None = None
    interval: tuple[float, float] | None = None
    supported: bool | None = None
    reasons: tuple[str, ...] = ()
    object_class: str = "galaxy"
    magnitude: float | None = None
    band: str = ""
    others: tuple[str, ...] = ()  # near-duplicates that are folded into it
    shared: bool = False  # in the other encoder's list, too

    @property
    def alt(self) -> str:
        """The picture in words."""
        numbers = [
            f"{self.band} = {fixed(self.magnitude, 1)} mag" if self.magnitude is not None else "",
            f"measured z = {fixed(self.z_spec, 3)}" if self.z_spec is not None else "",
            f"estimated z = {fixed(self.z_phot, 3)}" if self.z_phot is not None else "",
            f"distance {significant(self.distance)}" if self.distance is not None else "",
        ]
        return ", ".join([f"{self.source_id}", *filter(None, numbers)])


def band_choices(info: ShelfInfo) -> list[tuple[str, str]]:
    """What pictures can be drawn of, as (value, words): the usual colours, any three bands in a row, single bands."""
    usual = default_bands(info.bands)
    red_first = [band.name for band in sorted(info.bands, key=lambda band: -band.wavelength_nm)]
    rows = [tuple(red_first[i : i + 3]) for i in range(len(red_first) - 2)]
    words = [("", f"{' '.join(usual)} (colour)" if len(usual) > 1 else usual[0])]
    words += [(",".join(three), " ".join(three)) for three in rows if three != usual]
    return words + [(name, f"{name} alone") for name in reversed(red_first)]


def _redshifts(shelf: OpenShelf, ids: Sequence[str]) -> dict[str, RedshiftAnswer]:
    """Answers of the default fit, without densities; none where it cannot be asked."""
    if not ids or shelf.generation.default_redshift not in shelf.redshifts:
        return {}
    try:
        found = redshift.redshifts(shelf, list(ids), pdf=False)
    except RedshelfError:  # the grid is of use without
        return {}
    return {one.source_id: one for one in found if one.source_id is not None}


def of_ids(shelf: OpenShelf, ids: Sequence[str]) -> list[Card]:
    """Cards of sources that were named: their class, label and magnitude, and the photo-z of the catalogue columns."""
    rows = np.array([shelf.row(one) for one in ids], dtype=np.int64)
    columns, magnitudes = shelf.columns, _magnitudes(shelf, ids)
    z_spec, z_phot = (np.asarray(columns[name])[rows].tolist() for name in ("z_spec", "z_phot"))
    return [
        Card(
            source_id=one,
            z_spec=z_spec[i] if np.isfinite(z_spec[i]) else None,
            z_phot=z_phot[i] if np.isfinite(z_phot[i]) else None,
            magnitude=magnitudes[one],
            band=shelf.info.reference_band,
        )
        for i, one in enumerate(ids)
    ]


def _magnitudes(shelf: OpenShelf, ids: Sequence[str]) -> dict[str, float | None]:
    rows = np.array([shelf.row(one) for one in ids], dtype=np.int64)
    column = shelf.info.band_names.index(shelf.info.reference_band)
    values = np.asarray(shelf.columns["magnitudes"])[rows, column].tolist()
    return {one: value if np.isfinite(value) else None for one, value in zip(ids, values, strict=True)}


def of_neighbours(
    shelf: OpenShelf,
    neighbours: Sequence[Neighbour],
    *,
    beside: Sequence[tuple[float, float]] = (),
    unfolded: bool = False,
    shared: Collection[str] = (),
) -> tuple[list[Card], list[str]]:
    """Cards of neighbours, and the ids of those on the spot of the query (see `folding`), which have none."""
    folds, own = ([Fold(one) for one in neighbours], []) if unfolded else fold(neighbours, beside)
    shown = [one.first for one in folds]
    ids = [one.source_id for one in shown]
    answers, magnitudes = _redshifts(shelf, ids[:WITH_INTERVAL]), _magnitudes(shelf, ids)
    cards = []
    for one, n in zip(folds, shown, strict=True):
        answer = answers.get(n.source_id)
        interval = None
        if answer is not None and answer.z_q16 is not None and answer.z_q84 is not None:
            interval = (answer.z_q16, answer.z_q84)
        cards.append(
            Card(
                source_id=n.source_id,
                distance=n.distance,
                score=n.score,
                z_spec=n.z_spec,
                z_phot=n.z_phot if answer is None else answer.z_median,
                interval=interval,
                supported=None if answer is None else answer.support.in_support,
                reasons=() if answer is None else tuple(answer.support.reasons),
                object_class=n.object_class,
                magnitude=magnitudes[n.source_id],
                band=shelf.info.reference_band,
                others=tuple(other.source_id for other in one.others),
                shared=n.source_id in shared,
            )
        )
    return cards, [one.source_id for one in own]
