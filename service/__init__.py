"""The use cases: search, redshift, fit, publish. The only place that reads settings."""
