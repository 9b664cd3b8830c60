"""What `serve.py` compares with: a FastAPI route that makes the same FAISS call as neighbours by id, and nothing else.

BARE_INDEX=... BARE_COLUMNS=... uvicorn --app-dir benchmarks bare:app
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI

from redshelf.indexing import ann
from redshelf.indexing.columns import open_columns, row_of

app = FastAPI()
index, columns = ann.open_index(Path(os.environ["BARE_INDEX"])), open_columns(Path(os.environ["BARE_COLUMNS"]))


@app.get("/bare/{source_id}")
def nearest(source_id: str, k: int = 10) -> dict[str, Any]:
    row = row_of(columns, source_id)
    assert row is not None
    distance, rows = index.search(index.take(np.array([row])).astype(np.float32), k + 1)
    ids = columns["ids"]
    return {"ids": [bytes(ids[one]).decode() for one in rows[0, 1:]], "distances": distance[0, 1:].tolist()}
