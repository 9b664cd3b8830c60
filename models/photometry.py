"""Magnitudes and colours as an embedding: the baseline that every image encoder must beat.

Adjacent colours and one reference magnitude, as asinh magnitudes (Lupton, Gunn & Szalay 1999), beside one word a band
on whether its flux could be used. The numpy half (`Scaling`, `fit_scaling`, `features`, `standardise`, `columns`) works
without torch; `Photometry` is the encoder around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from redshelf.models import checkpoint
from redshelf.models.bands import DETECTION_SNR, Band, State, ab_to_flux, asinh_magnitude, reference_band
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from redshelf.models.encoder import Batch

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Subset = Literal["colours", "colours+magnitude", "all"]

# Standard deviations between a source with a band and one without: far more than neighbours are apart (about 1),
# so that band sets mix only where one of them has too few sources.
MASK_DISTANCE = 4.0


@dataclass(frozen=True)
class Scaling:
    """The constants of the features, JSON-serialisable. Bands stand in the order of the flux columns."""

    bands: tuple[str, ...]
    wavelength_nm: tuple[float, ...]
    softening_ujy: tuple[float, ...]  # 1-sigma flux
    sed_mag: tuple[float, ...]  # median magnitude of each band minus that of the reference band
    centre: tuple[float, ...]  # (F,) median of each feature
    scale: tuple[float, ...]  # (F,) standard deviation of each feature

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, from parsed JSON."""
        return cls(**{key: tuple(value) for key, value in config.items()})

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        """Column of each band, by wavelength."""
        return np.argsort(self.wavelength_nm, kind="stable")

    @cached_property
    def reference(self) -> int:
        """Column of the reference band."""
        return reference_band(self.wavelength_nm)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Feature names: `g-r` ..., then the reference magnitude `i`, then `observed_g` ..."""
        chain = [self.bands[column] for column in self.order]
        colours = [f"{blue}-{red}" for blue, red in pairwise(chain)]
        return (*colours, self.bands[self.reference], *(f"observed_{band}" for band in self.bands))


def columns(names: Sequence[str], subset: Subset) -> list[int]:
    """Positions in `Scaling.names` of the colours, of colours and reference magnitude, or of everything."""
    magnitude = (len(names) - 1) // 2  # B-1 colours, 1 magnitude, B masks
    counts = {"colours": magnitude, "colours+magnitude": magnitude + 1, "all": len(names)}
    if subset not in counts:
        raise BadInput(f"feature subset {subset!r}: expected one of {', '.join(counts)}")
    return list(range(counts[subset]))


def usable(state: npt.NDArray[np.int8]) -> Bools:
    """Where a flux can be trusted: measured or not detected, not saturated. Shape of `state`."""
    return np.asarray((state == State.MEASURED) | (state == State.NOT_DETECTED))


def colour_usable(state: npt.NDArray[np.int8], scaling: Scaling) -> Bools:
    """Which of the features "colours+magnitude" were measured, not imputed. (N, B)"""
    good = usable(state)
    chain = good[:, scaling.order]
    return np.column_stack([chain[:, :-1] & chain[:, 1:], good[:, scaling.reference]])


def _interpolate(values: Floats, known: Bools, position: Floats) -> Floats:
    """Fill the unknown columns of each row linearly in `position`, constant beyond the ends, 0 in an empty row."""
    n_columns = values.shape[1]
    index = np.arange(n_columns)
    left = np.maximum.accumulate(np.where(known, index, -1), axis=1)
    right = np.minimum.accumulate(np.where(known, index, n_columns)[:, ::-1], axis=1)[:, ::-1]
    left = np.where(left < 0, right, left)
    right = np.where(right >= n_columns, left, right)
    empty = ~known.any(axis=1, keepdims=True)
    left, right = np.where(empty, 0, left), np.where(empty, 0, right)
    span = position[right] - position[left]
    fraction = np.where(span > 0, (position - position[left]) / np.where(span > 0, span, 1), 0)
    rows = np.arange(len(values))[:, None]
    filled = values[rows, left] * (1 - fraction) + values[rows, right] * fraction
    return np.where(empty, 0, np.where(known, values, filled))


def _magnitudes(
    flux_ujy: npt.ArrayLike, state: npt.NDArray[np.int8], softening_ujy: npt.ArrayLike
) -> tuple[Floats, Bools]:
    """Asinh magnitudes (0 where unusable) and where they are usable, both (N, B)."""
    flux, good = np.asarray(flux_ujy, dtype=np.float64), usable(np.asarray(state))
    if flux.ndim != 2 or flux.shape != good.shape or flux.shape[1] != np.size(softening_ujy):
        raise BadInput(f"fluxes {flux.shape} and states {good.shape}: expected both (N, {np.size(softening_ujy)})")
    broken = np.argwhere(good & ~np.isfinite(flux))
    if len(broken):
        source, band = broken[0]
        raise BadInput(f"flux of source {source} in band {band} is {flux[source, band]}, and its state says observed")
    magnitude = asinh_magnitude(np.where(good, flux, 0), softening_ujy)
    return np.where(good, magnitude, 0).astype(np.float64), good


def features(flux_ujy: npt.ArrayLike, state: npt.NDArray[np.int8], scaling: Scaling) -> Floats:
    """Colours and reference magnitude (AB) and the mask words, (N, 2B), named by `scaling.names`; always finite.

    `flux_ujy`, `state`: (N, B). A band without a usable flux takes the shelf's median spectral shape, shifted to pass
    through its neighbours in wavelength: what the other bands say is kept, and nothing is added. `observed_<band>` is
    1 usable, 0 not observed, -1 saturated. Raises `BadInput` for a flux that is not finite though observed.
    """
    state = np.asarray(state)
    magnitude, good = _magnitudes(flux_ujy, state, scaling.softening_ujy)
    chain = scaling.order
    shape = np.asarray(scaling.sed_mag)[chain]
    position = np.log(np.asarray(scaling.wavelength_nm))[chain]
    anchored = scaling.centre[len(scaling.bands) - 1]  # median reference magnitude: keeps an empty row central
    full = anchored + shape + _interpolate(magnitude[:, chain] - shape - anchored, good[:, chain], position)
    reference = full[:, np.flatnonzero(chain == scaling.reference)]
    mask = good.astype(np.float64) - (state == State.SATURATED)
    return np.concatenate([full[:, :-1] - full[:, 1:], reference, mask], axis=1)


def standardise(values: Floats, scaling: Scaling) -> Floats:
    """`features` in units of the shelf's spread around its median; the masks in units of `MASK_DISTANCE`. (N, 2B)"""
    return np.asarray((values - np.asarray(scaling.centre)) / np.asarray(scaling.scale))


def fit_scaling(
    flux_ujy: npt.ArrayLike, flux_error_ujy: npt.ArrayLike, state: npt.NDArray[np.int8], *, bands: Sequence[Band]
) -> Scaling:
    """The constants from a shelf's sources, all (N, B).

    The softening is the band's 1-sigma flux: from its depth, or the median error where no depth is known. A band that
    no source has keeps neutral constants.
    """
    state, error = np.asarray(state), np.asarray(flux_error_ujy, dtype=np.float64)
    if len(state) == 0:
        raise BadInput("photometry needs at least one source to fit its constants")
    softening = []
    for column, band in enumerate(bands):
        known = error[usable(state[:, column]), column]
        typical = float(np.median(known)) if len(known) else 1.0
        depth = float(ab_to_flux(band.depth_ab)) / DETECTION_SNR
        softening.append(depth if np.isfinite(depth) else typical)
    magnitude, good = _magnitudes(flux_ujy, state, softening)
    wavelengths = tuple(float(band.wavelength_nm) for band in bands)
    draft = Scaling(tuple(b.name for b in bands), wavelengths, tuple(softening), (), (), ())
    reference = draft.reference
    medians = [float(np.median(m[g])) if g.any() else np.nan for m, g in zip(magnitude.T, good.T, strict=True)]
    anchor = medians[reference] if np.isfinite(medians[reference]) else float(np.nanmean([*medians, 23.9]))
    shape = []
    for column in range(len(bands)):
        both = good[:, column] & good[:, reference]
        difference = magnitude[both, column] - magnitude[both, reference] if both.any() else medians[column] - anchor
        shape.append(float(np.nan_to_num(np.median(difference))))
    n_bands = len(bands)
    neutral = [0.0] * (n_bands - 1) + [anchor] + [0.0] * n_bands
    draft = Scaling(draft.bands, wavelengths, tuple(softening), tuple(shape), tuple(neutral), (1.0,) * (2 * n_bands))
    values, known = features(flux_ujy, state, draft)[:, :n_bands], colour_usable(state, draft)
    centre, scale = [], []
    for column, measured in zip(values.T, known.T, strict=True):
        chosen = column[measured] if measured.any() else column
        centre.append(float(np.median(chosen)))
        scale.append(float(np.std(chosen)) or 1.0)
    centre[-1] = anchor
    return Scaling(
        draft.bands,
        wavelengths,
        tuple(softening),
        tuple(shape),
        (*centre, *[0.0] * n_bands),
        (*scale, *[1 / MASK_DISTANCE] * n_bands),
    )


class Photometry:
    """Standardised colours, reference magnitude and masks as an encoder; fluxes are dereddened, so ebv is not used."""

    kind = "photometry"
    needs = frozenset({"fluxes"})

    def __init__(self, scaling: Scaling, *, name: str = "photometry", revision: str | None = None) -> None:
        self.scaling, self.name = scaling, name
        self.bands, self.dim = scaling.bands, 2 * len(scaling.bands)
        self.revision = revision or checkpoint.revision(self)

    @classmethod
    def fit(
        cls,
        flux_ujy: npt.ArrayLike,
        flux_error_ujy: npt.ArrayLike,
        state: npt.NDArray[np.int8],
        *,
        bands: Sequence[Band],
        name: str = "photometry",
    ) -> Self:
        """Fit the constants on a shelf's sources, all (N, B); a sample of some 100,000 is plenty."""
        return cls(fit_scaling(flux_ujy, flux_error_ujy, state, bands=bands), name=name)

    @property
    def config(self) -> dict[str, Any]:
        return {"bands": list(self.bands), "scaling": asdict(self.scaling), "features": list(self.scaling.names)}

    def weights(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        return cls(Scaling.from_config(config["scaling"]), name=name, revision=revision)

    def embed(self, batch: Batch) -> Tensor:
        """(N, 2B) float32 on the batch's device."""
        return batch_features(batch, self.scaling, self.name)


def batch_features(batch: Batch, scaling: Scaling, encoder: str) -> Tensor:
    """Standardised features of a batch, (N, 2B) float32 on its device; `encoder` is named when fluxes are absent."""
    import torch

    batch.require(Photometry.needs, encoder)
    assert batch.flux_ujy is not None
    values = standardise(features(batch.flux_ujy.cpu().numpy(), batch.state.cpu().numpy(), scaling), scaling)
    return torch.from_numpy(values.astype(np.float32)).to(batch.flux_ujy.device)
