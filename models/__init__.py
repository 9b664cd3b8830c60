"""Encoders, estimators and their mathematics: arrays in, arrays out. Works alone on a GPU node."""
