"""What an encoder is: a batch of sources in, one vector a source out. Encoders never see a file.

An encoder is a registered kind, a config (JSON) and named weights; `models/checkpoint.py` saves and loads the three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from redshelf.models.errors import BadInput, nearest

if TYPE_CHECKING:
    from torch import Tensor

# kind -> module:class; imported when an encoder of that kind is loaded
KINDS = {
    "photometry": "redshelf.models.photometry:Photometry",
    "network": "redshelf.models.redshift_network:RedshiftNetwork",
    "vit": "redshelf.models.vit:MultiBandViT",
    "foundation": "redshelf.models.foundation:FoundationEncoder",
    "aion": "redshelf.models.aion:AionEncoder",
    "cnn": "redshelf.models.cnn:InceptionCNN",
    "multimodal-cnn": "redshelf.models.cnn:MultimodalCNN",
}


@dataclass(frozen=True)
class Batch:
    """N sources as tensors; None where the shelf has none. Band order is the encoder's `bands`."""

    state: Tensor  # (N, bands) int8, models.bands.State
    pixels: Tensor | None = None  # (N, bands, H, W) flux in units of the band's noise, float16 or float32
    pixel_mask: Tensor | None = None  # (N, bands, H, W) bool, True = bad
    flux_ujy: Tensor | None = None  # (N, bands), dereddened
    flux_error_ujy: Tensor | None = None  # (N, bands)
    depth_ab: Tensor | None = None  # (bands,) or (N, bands)
    psf_fwhm_arcsec: Tensor | None = None  # (bands,) or (N, bands)
    ebv: Tensor | None = None  # (N,)

    def __post_init__(self) -> None:
        n, bands = self.state.shape
        shapes = {"flux_ujy": (n, bands), "flux_error_ujy": (n, bands), "ebv": (n,)}
        for name, expected in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != expected:
                raise BadInput(f"Batch.{name} has shape {tuple(value.shape)}: expected {expected}")
        if self.pixels is not None and (self.pixels.ndim != 4 or tuple(self.pixels.shape[:2]) != (n, bands)):
            raise BadInput(f"Batch.pixels has shape {tuple(self.pixels.shape)}: expected ({n}, {bands}, H, W)")
        if self.pixels is not None and (self.pixel_mask is None or self.pixel_mask.shape != self.pixels.shape):
            raise BadInput("Batch.pixel_mask is compulsory beside pixels, with the same shape")

    def __len__(self) -> int:
        return int(self.state.shape[0])

    def to(self, device: str) -> Self:
        """The same batch on another device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same batch in pinned memory, from which a GPU copies while it computes."""
        return self._each(lambda value: value.pin_memory())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(value) for name, value in self.tensors().items()})

    def select(self, chosen: Tensor) -> Self:
        """The sources that `chosen` (N,) bool picks."""
        per_survey = {"depth_ab", "psf_fwhm_arcsec"}  # (bands,), unless given for each source
        picked = {
            f.name: value[chosen]
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None and not (f.name in per_survey and value.ndim == 1)
        }
        return replace(self, **picked)

    def require(self, needs: frozenset[str], encoder: str) -> None:
        """Raise `BadInput` naming the first of `needs` ("pixels", "fluxes") that this batch lacks."""
        have = {"pixels": self.pixels, "fluxes": self.flux_ujy}
        for need in sorted(needs):
            if have[need] is None:
                raise BadInput(f"encoder {encoder!r} needs {need}, and these sources come without {need}")


@runtime_checkable
class Encoder(Protocol):
    """One embedding space. `embed` returns (N, dim) float32, finite, or raises `BadInput` naming the missing need; of
    an encoder that is no torch module it may be called by two threads at once."""

    name: str
    revision: str
    dim: int
    bands: tuple[str, ...]
    needs: frozenset[str]

    def embed(self, batch: Batch) -> Tensor: ...


class StoredEncoder(Encoder, Protocol):
    """An encoder that `models/checkpoint.py` can write and read back."""

    kind: str

    @property
    def config(self) -> dict[str, Any]:
        """JSON-serialisable; holds `bands` and everything `from_config` needs beside the weights."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Named tensors, as safetensors stores them."""
        ...

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self: ...


def takes_texts(document: dict[str, Any]) -> bool:
    """Whether `embed_text` of an encoder with this config.json has an answer, as that of a CLIP whole has."""
    return bool(document["kind"] == "foundation" and document["config"].get("space") == "projected")


def encoder_class(kind: str) -> type[StoredEncoder]:
    """The class registered for `kind`; `BadInput` naming the kinds there are."""
    if kind not in KINDS:
        raise BadInput(f"encoder kind {kind!r} is not registered; {nearest(kind, KINDS)}")
    module, _, attribute = KINDS[kind].partition(":")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
