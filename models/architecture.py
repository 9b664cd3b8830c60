"""What a published network is, as JSON, and the names of its weights.

The JSON holds what the network's class needs, so that an encoder is rebuilt without the folder that it came from:
`model_type` with the arguments of its transformers config, or open_clip's model config. A CLIP is always described as
open_clip does; what transformers wrote is translated (it is one network, Radford et al. 2021).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from redshelf.models.errors import BadInput
from redshelf.models.pretrained import Published

if TYPE_CHECKING:
    from torch import Tensor

# model_type -> config and model of transformers
CLASSES = {
    "vit": ("ViTConfig", "ViTModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel"),
}
OPEN_CLIP_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers": "transformer.resblocks",
    "text_model.final_layer_norm": "ln_final",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Turns what the libraries raise inside into a `BadInput` naming `source`."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:
        raise BadInput(f"{source}: no network can be made of this: {error}") from error


def architecture_of(published: Published) -> dict[str, Any]:
    """The JSON from which `build` makes the network of a published folder."""
    raw, kind = published.raw, published.model_type
    with explained(str(published.folder)):
        if kind == "open_clip":
            model = raw["model_cfg"]
            towers = {key: model[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
            return {"model_type": kind, "quick_gelu": bool(model.get("quick_gelu", False)), **towers}
        if kind == "clip":
            return _open_clip_architecture(raw)
        return {"model_type": kind, **_arguments(CLASSES[kind][0], raw)}


def _arguments(config_class: str, raw: dict[str, Any]) -> dict[str, Any]:
    """All that describes the network, the defaults too, and nothing that could steer how weights are loaded."""
    import transformers

    own, base = getattr(transformers, config_class), transformers.PretrainedConfig
    names = set(inspect.signature(own.__init__).parameters) - set(inspect.signature(base.__init__).parameters)
    names = {name for name in names if not name.startswith("_") and name not in ("kwargs", "args")}
    config = own(**{key: raw[key] for key in names & set(raw)})
    return cast("dict[str, Any]", json.loads(json.dumps({key: getattr(config, key) for key in sorted(names)})))


def _open_clip_architecture(raw: dict[str, Any]) -> dict[str, Any]:
    vision = _arguments("CLIPVisionConfig", raw.get("vision_config") or {})
    text = _arguments("CLIPTextConfig", raw.get("text_config") or {})
    activations = {vision["hidden_act"], text["hidden_act"]}
    epsilons = {vision["layer_norm_eps"], text["layer_norm_eps"]}
    if activations not in ({"gelu"}, {"quick_gelu"}) or epsilons != {1e-5}:
        raise ValueError(f"hidden_act {activations}, layer_norm_eps {epsilons}: expected gelu or quick_gelu, and 1e-5")

    def shape(tower: dict[str, Any]) -> dict[str, Any]:
        ratio = tower["intermediate_size"] / tower["hidden_size"]
        return {"width": tower["hidden_size"], "layers": tower["num_hidden_layers"], "mlp_ratio": ratio}

    image = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    words = {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"]}
    return {
        "model_type": "open_clip",
        "embed_dim": raw.get("projection_dim", 512),
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": shape(vision) | image | {"head_width": vision["hidden_size"] // vision["num_attention_heads"]},
        "text_cfg": shape(text) | words | {"heads": text["num_attention_heads"]},
    }


def patch_of(architecture: dict[str, Any]) -> int:
    """Side of the network's patches, pixels."""
    size = architecture.get("vision_cfg", architecture).get("patch_size", 16)
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise BadInput(f"patch_size={size!r} of an image encoder: expected one size for both directions")
    return int(sides.pop())


def open_clip_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a CLIP under open_clip's names, from those of open_clip, of `ClipProjected` or of transformers."""
    import torch

    named: dict[str, Tensor] = {}
    for own, value in tensors.items():
        name = own.removeprefix("clip.").removeprefix("text.")
        for old, new in OPEN_CLIP_NAMES.items():
            name = name.replace(old, new)
        if ".self_attn.q_proj." in name:
            parts = [tensors[own.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            named[name.replace(".self_attn.q_proj.", ".attn.in_proj_")] = torch.cat(parts)
        elif name in ("visual_projection.weight", "text_projection.weight"):
            named["visual.proj" if name.startswith("visual") else "text_projection"] = value.T
        elif ".self_attn." not in name and not name.endswith("position_ids"):
            named[name] = value
    return named
