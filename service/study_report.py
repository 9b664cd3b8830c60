"""The report of a study: one page that opens without a network, and the CSV of every number.

Nothing is shown from fewer than two seeds or 100 objects. The page says what was not measured, and why; the sentence
that answers the question is withheld until published weights, verified by their sha256, have been measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from redshelf.indexing.files import write_bytes
from redshelf.service import study_figures as figures
from redshelf.service.study_plan import PUBLISHED, Budget, Plan
from redshelf.service.study_results import Key, Results, table
from redshelf.service.study_tables import tables

PAGE, CSV = "index.html", "study.csv"


def write(folder: Path, plan: Plan, budget: Budget, *, made: dict[str, Any]) -> Path:
    """Gather what was done and write `index.html` and `study.csv`; the path of the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    results = Results(folder)
    write_bytes(folder / CSV, table(results).encode())
    environment = Environment(loader=PackageLoader("redshelf.service", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("study.html").render(
        sentence=sentence(results),
        unmeasured=plan.unmeasured,
        made=made,
        when=time.strftime("%Y-%m-%d"),
        budget=asdict(budget),
        revisions=sorted(results.revisions),
        hours=results.seconds / 3600,
        done=sum(map(len, results.by_key.values())) + sum(map(len, results.surveys.values())),
        wanted=len(plan.cells),
        failed=results.failed,
        tables=tables(results, plan),
        figures=_figures(results, budget.curve),
    )
    write_bytes(folder / PAGE, page.encode())
    return folder / PAGE


def _figures(results: Results, sizes: Sequence[int]) -> list[tuple[str, str]]:
    found = {
        "Bias in support by redshift, kNN, LightGBM and redshelf on photometry. In bins of true redshift an unbiased "
        "density's mean leans to the middle; what a user can cut on is the lower row.": figures.bias_by_redshift(
            results
        ),
        "Photometric against true redshift (grey: logarithm of the count; line: equality).": (
            figures.photometric_against_true(results)
        ),
        "PIT of the sources in support; flat is calibrated.": figures.pit_histograms(results),
        "Shift weights of labels on the embedding (s1): bright and large is a label that stands for many sources.": (
            figures.weights_map(results)
        ),
        "What labels cost, what the size of the shift costs, what unlabelled images bring.": (
            figures.curves(results, sizes)
        ),
    }
    return [(caption, image) for caption, image in found.items() if image is not None]


def sentence(results: Results) -> str | None:
    """Whether the bias of foundation models is as large as that of classical algorithms; None without what it takes."""
    verified = [
        name
        for name in PUBLISHED
        if (found := results.weights(f"{name}, frozen")) and all(text.endswith(", verified") for text in found)
    ]
    classical = {
        estimator: results.number(Key("photometry", "s1", estimator, sky=sky), "bias")
        for estimator, sky in (("knn", "images"), ("lightgbm", "catalogue"))
    }
    if not verified or classical["knn"] is None:
        return None
    said = []
    for name in verified:
        alone = Key(f"{name}, frozen", "s1", sky="images")
        for key, how in ((alone, "alone"), (replace(alone, beside=True), "with photometry beside it")):
            bias, change = (
                results.number(key, "bias"),
                results.change(key, replace(alone, approach="photometry"), "bias"),
            )
            if bias is not None and change is not None:
                size = (
                    "larger" if change.value > change.error else "smaller" if change.value < -change.error else "equal"
                )
                said.append(f"{name} {how} has a bias of {bias}: its size is {size} ({change})")
    if not said:
        return None
    return (
        "Labels chosen by i and g-z, no correction, kNN: photometry (the classical algorithm) has a bias of "
        f"{classical['knn']}; {'; '.join(said)}. Errors are over seeds and objects."
    )
