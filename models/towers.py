"""The published networks as torch modules: images in, one vector an image out.

Each is made from the JSON of `models/architecture.py`, and from weights that are named as published or as here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models.architecture import CLASSES, explained, open_clip_names, patch_of
from redshelf.models.errors import BadInput

Space = Literal["trunk", "projected"]
Tensors = dict[str, Tensor]

HEADS = ("pooler.", "classifier.")  # in some files, and no part of the features
NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
BPE_WORDS = 49408  # of CLIP's own tokenizer, which open_clip carries


class Tower(nn.Module, ABC):
    """A network on (M, 3, H, W) images, normalised as its training had them. `dim`: of the vector it gives."""

    dim: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, dim)."""


class TransformersTower(Tower):
    """A DINO: the CLS token beside the mean of the patch tokens, both after the last norm; registers left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config = cast(Any, model).config
        self.dim = 2 * int(config.hidden_size)
        self.before = 1 + int(getattr(config, "num_register_tokens", 0))
        # ViTModel has to be asked to interpolate; the DINOv2s always do, and DINOv3 turns its tokens instead
        self.asked = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model(pixel_values=images, **self.asked).last_hidden_state  # (M, T, d)
        return torch.cat([tokens[:, 0].float(), tokens[:, self.before :].float().mean(dim=1)], dim=1)


class ClipTrunk(Tower):
    """CLIP's image tower before its projection: CLS beside the mean of the patch tokens, both after the last norm."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.visual = cast(Any, clip).visual
        self.visual.proj, self.visual.output_tokens = None, True
        self.dim = 2 * int(self.visual.conv1.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        first, patches = self.visual(images)  # (M, d), (M, T, d)
        return torch.cat([first.float(), patches.float().mean(dim=1)], dim=1)


class ClipProjected(Tower):
    """CLIP whole: normalised vectors in the space that images and texts share."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.dim = int(cast(Any, clip).visual.output_dim)

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(cast(Any, self.clip).encode_image(images).float(), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, dim), normalised; a text of more words than the network takes is cut."""
        from open_clip.tokenizer import tokenize  # type: ignore[import-untyped]

        clip = cast(Any, self.clip)
        words = tokenize(list(texts), context_length=clip.context_length)
        return F.normalize(clip.encode_text(words.to(clip.logit_scale.device)).float(), dim=1)


def build(architecture: dict[str, Any], tensors: Tensors | None, *, input_px: int, space: Space, source: str) -> Tower:
    """The network with `tensors`, or at random from torch's global generator where they are None.

    `tensors` are named as published, or as the tower's `state_dict` names them. Position embeddings of a CLIP are
    interpolated to `input_px` here, those of the others whenever they run. `BadInput` naming `source` where the tensors
    do not fit or the architecture is none that is known here, and for `input_px` that is no multiple of the patch.
    """
    patch = patch_of(architecture)
    if input_px < patch or input_px % patch:
        raise BadInput(f"input_px={input_px}: expected a multiple of the patch of {source}, {patch} pixels")
    with explained(source):
        if architecture["model_type"] == "open_clip":
            return _clip_tower(architecture, tensors, input_px, space).eval()
        if space != "trunk":
            raise ValueError(f"space={space!r}: only a CLIP has a space that texts share")
        return _transformers_tower(architecture, tensors).eval()


def _transformers_tower(architecture: dict[str, Any], tensors: Tensors | None) -> Tower:
    import transformers

    kind = architecture["model_type"]
    config_class, model_class = (getattr(transformers, name) for name in CLASSES[kind])
    # DINOv3 would shift and rescale positions at random in training, and the size of a galaxy with them
    arguments = {key: None if key.startswith("pos_embed_") else value for key, value in architecture.items()}
    del arguments["model_type"]
    config = config_class(**arguments)
    if config.num_channels != 3:
        raise ValueError(f"num_channels={config.num_channels}, expected 3")
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "vit" else {}
    if tensors is None:
        return TransformersTower(model_class(config, **options))
    if all(key.startswith("model.") for key in tensors):
        tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
    with _quiet():
        # from_pretrained, though without a folder: it knows the names that each version of transformers has used
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    extra = (key for key in report["unexpected_keys"] if not key.startswith(HEADS))
    _refuse_misfits(report["missing_keys"], extra, (key for key, *_ in report["mismatched_keys"]))
    for value in model.parameters():
        value.data = value.data.clone()  # they were the caller's tensors, which may be the file itself, mapped
    return TransformersTower(model)


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _clip_tower(architecture: dict[str, Any], tensors: Tensors | None, input_px: int, space: Space) -> Tower:
    from open_clip.model import (  # type: ignore[import-untyped]
        CLIP,
        CLIPTextCfg,
        CLIPVisionCfg,
        resize_pos_embed,
    )

    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    plain = {"pool_type": "tok", "attentional_pool": False, "final_ln_after_pool": False, "timm_model_name": None}
    odd = {key: vision[key] for key, value in plain.items() if vision.get(key, value) != value}
    if odd or not isinstance(vision["layers"], int):
        raise ValueError(f"image tower with {odd or vision['layers']}: expected a plain vision transformer")
    if space == "projected" and (
        text.keys() & {"hf_model_name", "hf_tokenizer_name"} or text.get("vocab_size", BPE_WORDS) != BPE_WORDS
    ):
        raise ValueError(f"text tower {text}: expected CLIP's own, with its {BPE_WORDS} words")
    if space == "trunk":
        text = NO_TEXT
    clip = CLIP(
        architecture["embed_dim"],
        vision_cfg=CLIPVisionCfg(**{**vision, "image_size": input_px}),
        text_cfg=CLIPTextCfg(**text),
        quick_gelu=architecture["quick_gelu"],
    )
    tower = ClipTrunk(clip) if space == "trunk" else ClipProjected(clip)
    if tensors is None:
        return tower
    named = open_clip_names(tensors)
    if space == "trunk":
        named = {key: value for key, value in named.items() if key.startswith("visual.") and key != "visual.proj"}
    resize_pos_embed(named, clip)
    target = tower if space == "trunk" else clip
    expected = target.state_dict()
    _refuse_misfits(
        expected.keys() - named.keys(),
        named.keys() - expected.keys(),
        (key for key, value in named.items() if key in expected and expected[key].shape != value.shape),
    )
    target.load_state_dict(named)
    return tower


def _refuse_misfits(missing: Iterable[str], extra: Iterable[str], other_shape: Iterable[str]) -> None:
    found = {"lack": sorted(missing), "also hold": sorted(extra), "have another shape in": sorted(other_shape)}
    if any(found.values()):
        said = (f"{what} {len(keys)} tensors, the first {keys[0]}" for what, keys in found.items() if keys)
        raise ValueError(f"the weights do not fit the config: they {'; they '.join(said)}")
