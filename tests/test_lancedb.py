"""A shelf is one LanceDB database: whoever has lancedb opens it without redshelf."""

from pathlib import Path

import lancedb
import numpy as np

from redshelf.indexing.layout import Layout


def test_lancedb_opens_the_tables_and_finds_a_stored_vector(tiny_shelf: Path) -> None:
    database = lancedb.connect(tiny_shelf)
    revision = Layout(tiny_shelf).newest("vit")
    names = set(database.list_tables().tables)
    assert {"sources", "labels", "cutouts", f"embeddings.vit.{revision}"} <= names
    table = database.open_table(f"embeddings.vit.{revision}")
    assert table.count_rows() == 300
    vector = np.asarray(table.to_arrow()["vector"][17].as_py(), dtype=np.float32)
    assert table.search(vector).limit(1).to_list()[0]["row"] == 17
