"""What the cells of a study found, gathered over seeds: numbers with errors over seeds and objects, and the CSV."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redshelf.indexing.files import read_json

MEASURES = ("bias", "sigma_mad", "outliers")
LEAST_SEEDS = 2
COLUMNS = (
    "sky", "scenario", "approach", "photometry_beside", "estimator", "correction", "balance", "fraction_of_labels",
    "seed", "slice", "n", "bias", "bias_error", "sigma_mad", "sigma_mad_error", "outliers", "outliers_error", "median",
    "cde_loss", "crps", "pit_ks", "cover_68", "cover_95", "labels", "ess", "weights", "data", "revision", "when",
)  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A mean over seeds and its standard error, of seeds and objects together."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} ± {self.error:.4f}"

    @property
    def plain(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


@dataclass(frozen=True)
class Table:
    """One table of the page: what it says, its head, and rows of cells, already words."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Key:
    """What the cells of one line share: all but the seed."""

    approach: str
    scenario: str
    estimator: str = "knn"
    correction: str = "none"
    balance: bool = False
    beside: bool = False
    sky: str = "catalogue"
    fraction: float = 1.0


class Results:
    """Every cell that was done, by `Key`; those of real surveys by name; and what failed, with its reason."""

    def __init__(self, folder: Path) -> None:
        self.by_key: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        self.surveys: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.failed: dict[str, str] = {}
        self.seconds = 0.0  # of one core
        self.revisions: set[str] = set()
        for kind in ("models", "spaces", "cells"):
            for path in sorted((folder / kind).glob("*.json")) if (folder / kind).is_dir() else ():
                document = read_json(path)
                if "job" not in document:
                    continue
                self.seconds += document.get("core_seconds", document["seconds"])
                self.revisions.add(document["made"]["revision"])
                if "failed" in document:
                    self.failed[path.stem] = document["failed"]["reason"]
                elif kind == "cells":
                    self._add(document)

    def _add(self, document: dict[str, Any]) -> None:
        job = document["job"]
        if "survey" in job:
            self.surveys[job["survey"]].append(document)
        else:
            self.by_key[key_of(job)].append(document)

    def number(self, key: Key, measure: str, part: str = "all") -> Number | None:
        """A score of one slice over seeds; None from fewer than two seeds or 100 objects."""
        return over_seeds([d["found"]["slices"].get(part) for d in self.by_key.get(key, ())], measure)

    def change(self, key: Key, of: Key, measure: str, part: str = "all") -> Number | None:
        """How far a score (of bias its size) is from another line's, paired by seed."""
        pairs = []
        others = {d["job"]["space"]["seed"]: d for d in self.by_key.get(of, ())}
        for ours in self.by_key.get(key, ()):
            other = others.get(ours["job"]["space"]["seed"])
            scores = [None if d is None else d["found"]["slices"].get(part) for d in (ours, other)]
            if None not in scores:
                pairs.append(scores)
        if len(pairs) < LEAST_SEEDS:
            return None

        def size(score: Any) -> float:
            return abs(score[measure]) if measure == "bias" else float(score[measure])

        gains = [size(a) - size(b) for a, b in pairs]
        return Number(float(np.mean(gains)), float(np.std(gains, ddof=1) / np.sqrt(len(gains))))

    def mean(self, key: Key, name: str) -> float | None:
        """The mean over seeds of a number that stands beside the slices."""
        found = [d["found"][name] for d in self.by_key.get(key, ()) if d["found"].get(name) is not None]
        return float(np.mean(found)) if len(found) >= LEAST_SEEDS else None

    def weights(self, approach: str) -> list[str]:
        """Where the weights of an approach come from, each once."""
        return sorted(
            {d["made"]["weights"] for k, found in self.by_key.items() if k.approach == approach for d in found}
        )

    def approaches(self, sky: str) -> list[str]:
        return list(dict.fromkeys(key.approach for key in self.by_key if key.sky == sky and key.fraction == 1))


def key_of(job: dict[str, Any]) -> Key:
    """The line that a cell's job belongs to."""
    space = job["space"]
    return Key(
        space["approach"],
        space["scenario"],
        job["estimator"],
        job["correction"],
        job["balance"],
        job["beside"],
        space["sky"],
        space["fraction"],
    )


def over_seeds(scores: list[dict[str, float] | None], measure: str) -> Number | None:
    """Mean, and the error from the spread over seeds and the bootstrap over objects; None under two seeds."""
    known = [score for score in scores if score is not None and measure in score]
    if len(known) < LEAST_SEEDS:
        return None
    values = np.array([score[measure] for score in known])
    objects = np.mean([score.get(f"{measure}_error", 0.0) for score in known])
    return Number(float(values.mean()), float(np.hypot(values.std(ddof=1) / np.sqrt(len(values)), objects)))


def table(results: Results) -> str:
    """Every number of every cell as CSV, one line a slice, with its provenance."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(results))
    return text.getvalue()


def _lines(results: Results) -> Iterator[dict[str, Any]]:
    for key, documents in results.by_key.items():
        line = {
            "sky": key.sky,
            "scenario": key.scenario,
            "approach": key.approach,
            "photometry_beside": int(key.beside),
            "estimator": key.estimator,
            "correction": key.correction,
            "balance": int(key.balance),
            "fraction_of_labels": key.fraction,
        }
        for document in documents:
            yield from _slices({**line, **document["made"]}, document["found"])
    for survey, documents in results.surveys.items():
        for document in documents:
            made = {"sky": "real", "scenario": survey, "approach": "photometry", "seed": document["job"]["seed"]}
            for answer, found in document["found"]["answers"].items():
                estimator, correction = answer.split(", ")
                how = {"estimator": estimator, "correction": correction, "weights": "none: catalogue magnitudes"}
                yield from _slices({**document["made"], **made, **how}, {**document["found"], **found})


def _slices(line: dict[str, Any], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part, score in found["slices"].items():
        if score is not None:
            yield {**line, "slice": part, **score, "labels": found["labels"], "ess": found.get("ess", "")}
