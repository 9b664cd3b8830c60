"""Small published networks with random weights, in folders laid out as the hub lays them out.

Weights bear the names that the hub's files have, which are those of older versions of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS = 32, 2, 2
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
BEFORE = {  # transformers 5 -> the hub
    "vit": {
        "layers.": "encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    "dinov2": {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    },
    "dinov3_vit": {"model.layer.": "layer."},
}
BEFORE["dinov2_with_registers"] = BEFORE["dinov2"]


def _randomised(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter drawn anew, so that no norm or layer scale is the identity; the model's own are set too."""
    generator = torch.Generator().manual_seed(1)
    for value in model.parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=generator) + (value.ndim == 1) * 0.5
    return {key: value.clone().contiguous() for key, value in model.state_dict().items()}


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    save_file(tensors, folder / "model.safetensors")


def _transformers(folder: Path, model_type: str) -> nn.Module:
    import transformers

    classes: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: transformers.ViTModel(
            transformers.ViTConfig(**sizes, intermediate_size=64, image_size=224, patch_size=16)
        ),
        "dinov2": lambda: transformers.Dinov2Model(
            transformers.Dinov2Config(**sizes, mlp_ratio=2, image_size=518, patch_size=14)
        ),
        "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, image_size=518, patch_size=14)
        ),
        "dinov3_vit": lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**sizes, intermediate_size=64, patch_size=16, num_register_tokens=4)
        ),
    }
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    model = classes[model_type]().eval()
    tensors = _randomised(model)
    for new, old in BEFORE[model_type].items():
        tensors = {key.replace(new, old): value for key, value in tensors.items()}
    _write(folder, model.config.to_dict(), tensors)  # type: ignore[operator, union-attr]
    return model


def dino(folder: Path) -> nn.Module:
    """As facebook/dino-vits16."""
    return _transformers(folder, "vit")


def dinov2(folder: Path) -> nn.Module:
    """As facebook/dinov2-small."""
    return _transformers(folder, "dinov2")


def dinov2_registers(folder: Path) -> nn.Module:
    """As facebook/dinov2-with-registers-small."""
    return _transformers(folder, "dinov2_with_registers")


def dinov3(folder: Path) -> nn.Module:
    """As facebook/dinov3-vits16-pretrain-lvd1689m."""
    return _transformers(folder, "dinov3_vit")


def clip(folder: Path) -> nn.Module:
    """As laion/CLIP-ViT-B-32-laion2B-s34B-b79K, in the layout of open_clip: a 64-pixel image in patches of 32."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg  # type: ignore[import-untyped]

    vision = {"image_size": 64, "layers": LAYERS, "width": HIDDEN, "head_width": HIDDEN // HEADS, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": HIDDEN, "heads": HEADS, "layers": LAYERS}
    model: nn.Module = CLIP(24, CLIPVisionCfg(**vision), CLIPTextCfg(**text)).eval()
    tensors = _randomised(model)
    folder.mkdir(parents=True)
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "open_clip_model.safetensors")
    return model


def clip_of_transformers(folder: Path) -> nn.Module:
    """As openai/clip-vit-base-patch32, in the layout of transformers."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
        "hidden_act": "quick_gelu",
    }
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 64, "patch_size": 32}, text_config=sizes, projection_dim=24
    )
    model: nn.Module = transformers.CLIPModel(config).eval()
    _write(folder, config.to_dict(), _randomised(model))
    return model
