"""Image encoders with random weights for the bands of a survey, by the names of `redshelf train --model`."""

from __future__ import annotations

from collections.abc import Sequence

from redshelf.models.backbone import Backbone
from redshelf.models.bands import Band, named
from redshelf.models.cnn import InceptionCNN, MultimodalCNN, default_streams
from redshelf.models.errors import BadInput, nearest
from redshelf.models.vit import SIZES, MultiBandViT, Size, default_groups

MODELS = ("vit", "cnn", "multimodal-cnn")


def fresh(
    model: str, bands: Sequence[Band], *, cutout_px: int, size: Size = SIZES["tiny"], width: float = 1.0
) -> Backbone:
    """Draws from torch's global generator. `size` is of a vit, `width` of a CNN. `BadInput` for an unknown model."""
    names, wavelengths = [band.name for band in bands], [band.wavelength_nm for band in bands]
    if model == "vit":
        return MultiBandViT(names, groups=named(bands, default_groups(wavelengths)), cutout_px=cutout_px, size=size)
    if model == "cnn":
        return InceptionCNN(names, cutout_px=cutout_px, width=width)
    if model == "multimodal-cnn":
        streams = named(bands, default_streams(wavelengths))
        return MultimodalCNN(names, streams=streams, cutout_px=cutout_px, width=width)
    raise BadInput(f"model {model!r} of an image encoder; {nearest(model, MODELS)}")
