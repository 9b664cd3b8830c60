"""What `serve.py` compares with: a FastAPI route that makes the same FAISS call as neighbours by id, and nothing else.

BARE_INDEX=... BARE_COLUMNS=... python benchmarks/bare.py PORT WORKERS
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

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


class Prompt(H11Protocol):
    """As `api/connections`: of several workers each of uvicorn's own answers waits 40 ms for an acknowledgement."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)


if __name__ == "__main__":
    import bare  # so that the processes find the class by this name

    told: dict[str, Any] = {"port": int(sys.argv[1]), "workers": int(sys.argv[2]), "access_log": False}
    uvicorn.run("bare:app", http=bare.Prompt, **told)
