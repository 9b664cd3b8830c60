"""Made `shelf-schema-3.tar.xz`, once: a shelf that later versions must go on reading. Not run by the tests.

python tests/data/make_shelf.py      refuses to overwrite; a new SCHEMA_VERSION gets a file of its own beside it
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "links")]

import small_survey  # noqa: E402

from redshelf.indexing.layout import SCHEMA_VERSION  # noqa: E402
from redshelf.service.embedding import embed  # noqa: E402
from redshelf.service.index import build_index  # noqa: E402
from redshelf.service.ingest import ingest  # noqa: E402
from redshelf.service.publish import publish  # noqa: E402
from redshelf.service.search import neighbours  # noqa: E402
from redshelf.service.shelf import open_shelf  # noqa: E402

with (
    tempfile.TemporaryDirectory() as scratch,
    tarfile.open(HERE / f"shelf-schema-{SCHEMA_VERSION}.tar.xz", "x:xz") as out,
):
    root = Path(scratch) / "shelf"
    ingest(small_survey.write(Path(scratch), sources=60, images=False), root)
    embed(root, encoder="photometry")
    build_index(root, encoder="photometry")
    publish(root)
    shelf = open_shelf(root)
    found = {
        source: [one.source_id for one in neighbours(shelf, source, k=5).neighbours] for source in ("s0000", "s0031")
    }
    (root / "expected.json").write_text(json.dumps(found))
    out.add(root, "shelf")
