"""Published weights on disk: which network a folder holds, its tensors, where they come from. Nothing is downloaded.

A folder is what the hub gives for a repository (on Jean Zay `$DSDIR/HuggingFace_Models/facebook/dinov2-base`): weights
as safetensors beside `config.json` (DINO, DINOv2, DINOv3, CLIP as transformers writes it) or `open_clip_config.json`.
Pickles are refused. `locate` looks at names and configs only, so that a mistake shows before anything heavy starts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redshelf.models.errors import BadInput, nearest
from redshelf.models.whole import sha256

if TYPE_CHECKING:
    from torch import Tensor

# model_type in config.json -> family; "open_clip" stands for open_clip_config.json
FAMILIES = {
    "vit": "dino",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "clip": "clip",
    "open_clip": "clip",
}
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # Radford et al. 2021


@dataclass(frozen=True)
class Published:
    """A folder that was looked at. `files`: the weights, in the order that their sha256 is taken; empty if none are
    wanted. `raw`: the parsed config. `mean`, `std`: of the three channels, as the weights were trained."""

    folder: Path
    model_type: str
    raw: dict[str, Any]
    files: tuple[Path, ...]
    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def family(self) -> str:
        """One of dino, dinov2, dinov3, clip."""
        return FAMILIES[self.model_type]


def locate(folder: Path, *, family: str | None = None, weights: Path | None = None, wanted: bool = True) -> Published:
    """What `folder` holds, from names and configs alone.

    `weights` names a safetensors file that lies elsewhere; with `wanted` false none is looked for. Raises `BadInput`
    for a missing folder or file, a pickle, a config that cannot be read, or a network of another family than `family`.
    """
    if family is not None and family not in FAMILIES.values():
        raise BadInput(f"family {family!r} of a foundation encoder; {nearest(family, set(FAMILIES.values()))}")
    for path in (folder, weights):
        if path is not None and path.suffix in PICKLES:
            raise _pickle_error(path)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected one with published weights, as the hub lays it out")
    if weights is not None and not weights.is_file():
        raise BadInput(f"{weights}: no such file; expected weights as safetensors")
    open_clip = (folder / OPEN_CLIP_CONFIG).is_file()
    if open_clip and weights is None and (folder / "config.json").is_file():
        # laion's repositories hold both; the one whose weights are no pickle is taken
        open_clip = any((folder / file).is_file() for file in OPEN_CLIP_WEIGHTS)
    raw = read_json(folder / (OPEN_CLIP_CONFIG if open_clip else "config.json"))
    model_type = "open_clip" if open_clip else str(raw.get("model_type"))
    if model_type not in FAMILIES:
        raise BadInput(f"{folder}: model_type {model_type!r} is no image encoder known here; {nearest('', FAMILIES)}")
    if family is not None and FAMILIES[model_type] != family:
        raise BadInput(
            f"{folder} holds a {model_type} network, of family {FAMILIES[model_type]!r}: expected {family!r}"
        )
    files = () if not wanted else (weights,) if weights is not None else _weight_files(folder, open_clip)
    mean, std = _normalisation(folder, model_type, raw)
    return Published(folder, model_type, raw, files, _published_name(folder, raw), mean, std)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `BadInput` where it is missing or damaged."""
    if not path.is_file():
        raise BadInput(f"{path.parent}: no {path.name}; expected a folder of published weights, as the hub lays it out")
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _pickle_error(path: Path) -> BadInput:
    return BadInput(
        f"{path} is a pickle, which can run code when it is read: weights are taken as safetensors only. "
        f"If you trust where it comes from, convert it once, into a folder of yours: "
        f'python -c "import torch; from safetensors.torch import save_file; '
        f"save_file({{k: v.clone().contiguous() for k, v in torch.load('{path}', weights_only=True).items()}}, "
        f"'{WEIGHTS}')\""
    )


def _weight_files(folder: Path, open_clip: bool) -> tuple[Path, ...]:
    for name in (*OPEN_CLIP_WEIGHTS, WEIGHTS) if open_clip else (WEIGHTS,):
        if (folder / name).is_file():
            return (folder / name,)
    if not open_clip and (folder / SHARDS).is_file():
        shards = sorted({str(name) for name in read_json(folder / SHARDS).get("weight_map", {}).values()})
        for name in shards:
            if Path(name).name != name or not (folder / name).is_file():
                raise BadInput(f"{folder / SHARDS} names {name!r}, which is no file of {folder}")
        if shards:
            return tuple(folder / name for name in shards)
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise _pickle_error(pickles[0])
    raise BadInput(f"{folder}: no {' or '.join(OPEN_CLIP_WEIGHTS if open_clip else (WEIGHTS,))}")


def _normalisation(
    folder: Path, model_type: str, raw: dict[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Channel mean and deviation: the folder's own, or those that its family published."""
    default = CLIP if FAMILIES[model_type] == "clip" else IMAGENET
    if model_type == "open_clip":
        own, keys = raw.get("preprocess_cfg", {}), ("mean", "std")
    else:
        path = folder / "preprocessor_config.json"
        own, keys = read_json(path) if path.is_file() else {}, ("image_mean", "image_std")
    mean, std = (own.get(key, values) for key, values in zip(keys, default, strict=True))
    for values in (mean, std):
        if (
            not isinstance(values, list | tuple)
            or len(values) != 3
            or not all(isinstance(v, int | float) for v in values)
        ):
            raise BadInput(f"{folder}: channel mean {mean!r} and deviation {std!r}: expected three numbers each")
    if min(std) <= 0:
        raise BadInput(f"{folder}: channel deviation {std!r}: expected more than 0")
    (m0, m1, m2), (s0, s1, s2) = mean, std
    return (float(m0), float(m1), float(m2)), (float(s0), float(s1), float(s2))


def _published_name(folder: Path, raw: dict[str, Any]) -> str:
    """`organisation/model` where folder or config tell, otherwise the folder's name (never its path, which would make
    the encoder's revision a matter of where the folder lies)."""
    resolved = folder.resolve()
    cached = re.fullmatch(r"models--(.+?)--(.+)", resolved.parent.parent.name)  # the hub's own cache
    if cached and resolved.parent.name == "snapshots":
        return f"{cached[1]}/{cached[2]}"
    own = str(raw.get("_name_or_path", ""))
    return own if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", own) else resolved.name


def check_sha256(files: tuple[Path, ...], expected: str | None) -> str:
    """The sha256 of the weight file, or of its shards one after the other; `BadInput` where `expected` is another."""
    found = sha256(*files)
    if expected is not None and found != expected.lower():
        raise BadInput(f"{files[0]}: sha256 is {found}, expected {expected}: these are other weights, or damaged ones")
    return found


def read_tensors(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """The named tensors of safetensors files; `BadInput` for a damaged or truncated one, or values not finite."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            with path.open("rb") as handle:
                if handle.read(4).startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
                    raise _pickle_error(path) from error
            raise BadInput(f"{path} is no whole safetensors file ({error}): fetch it again") from error
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BadInput(f"{files[0]}: tensor {key} holds values that are not finite: fetch it again")
    return tensors
