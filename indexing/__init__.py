"""Data at rest and search over it: catalogues, cutouts, embeddings, indexes."""
