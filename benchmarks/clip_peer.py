"""What `serve.py` compares with, too: clip-retrieval's own `/knn-service` on the same vectors, indexed by autofaiss.

    python3.11 -m venv clip && clip/bin/pip install --no-deps clip-retrieval==2.45.0 autofaiss embedding_reader
    clip/bin/pip install 'numpy<2' 'pyarrow<16' 'faiss-cpu<2' 'pandas<3' 'fire<0.6' 'flask<4' flask_restful \
        'flask_cors<5' h5py prometheus-client fsspec tqdm pillow
    clip/bin/python benchmarks/clip_peer.py build FOLDER; clip/bin/python benchmarks/clip_peer.py serve FOLDER PORT

It wants older packages than redshelf, so that it runs in an environment of its own and imports nothing of ours. Its
code, its loader of indexes and metadata, and its server (Flask's, in threads) are as they are. Only CLIP is left out,
which it would download before it answers and does not ask where a vector is given: torch and all_clip are empty here,
and of the package only the service is imported.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def _without_clip() -> None:
    torch, all_clip = ModuleType("torch"), ModuleType("all_clip")
    torch.cuda = SimpleNamespace(is_available=lambda: False)  # type: ignore[attr-defined]
    all_clip.load_clip = lambda *_, **__: (None, None, None)  # type: ignore[attr-defined]
    package, found = ModuleType("clip_retrieval"), find_spec("clip_retrieval")
    assert found is not None
    package.__path__ = found.submodule_search_locations or []  # its __init__ imports what computes embeddings, too
    sys.modules.update(torch=torch, all_clip=all_clip, clip_retrieval=package)


def build(folder: Path) -> None:
    """`image.index` of FOLDER/embeddings/*.npy, as `clip-retrieval index` has autofaiss make it by default."""
    from autofaiss import build_index

    told = {"metric_type": "ip", "max_index_memory_usage": "4G", "current_memory_available": "10G", "nb_cores": 2}
    paths = {"index_path": str(folder / "image.index"), "index_infos_path": str(folder / "image_infos.json")}
    build_index(embeddings=str(folder / "embeddings"), **paths, **told)
    print((folder / "image_infos.json").read_text())


def serve(folder: Path, port: int) -> None:
    """`/knn-service` over FOLDER, on loopback, until interrupted."""
    _without_clip()
    from clip_retrieval import clip_back
    from flask import Flask
    from flask_restful import Api

    usual: dict[str, Any] = {name: False for name in clip_back.ClipOptions.__dataclass_fields__}
    told = {"indice_folder": str(folder), "clip_model": "none", "columns_to_return": ["image_path"]}
    resources = {"shelf": clip_back.load_clip_index(clip_back.ClipOptions(**{**usual, **told}))}
    app = Flask(__name__)
    api = Api(app)
    api.add_resource(clip_back.IndicesList, "/indices-list", resource_class_kwargs={"indices": list(resources)})
    api.add_resource(clip_back.KnnService, "/knn-service", resource_class_kwargs={"clip_resources": resources})
    clip_back.CORS(app)
    app.run(host="127.0.0.1", port=port, debug=False)  # its own binds every interface


def question(vector: list[float], k: int) -> bytes:
    """What its own client sends, for a vector and k neighbours, with neither safety model nor removal of duplicates."""
    return json.dumps(
        {"embedding_input": vector, "modality": "image", "num_images": k, "num_result_ids": k, "indice_name": "shelf"}
    ).encode()


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    else:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
