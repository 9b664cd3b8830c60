"""The tables of the study's report: approaches, corrections, redshifts, magnitudes, other skies, real surveys."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from redshelf.service.study_plan import CHOSEN, CORRECTIONS, SCENARIOS, Plan
from redshelf.service.study_results import MEASURES, Key, Number, Results, Table, over_seeds
from redshelf.service.study_scores import MAGNITUDES, REDSHIFTS
from redshelf.service.study_warnings import warnings

NONE = "–"
TITLES = {
    "s0": "s0: labels represent the sky",
    "s1": "s1: labels chosen by i and g-z (covariate shift holds)",
    "s2": "s2: labels depend on the redshift itself (it does not)",
}
NAMES = {
    "knn40": "kNN, mean of 40",
    "knn": "kNN",
    "lightgbm": "LightGBM",
    "network": "network",
    "head": "its own p(z)",
    "redshelf": "redshelf",
}


def tables(results: Results, plan: Plan) -> list[Table]:
    """Those that have a row."""
    out = [_approaches(results, plan, scenario) for scenario in SCENARIOS]
    out += [_corrections(results, scenario) for scenario in SCENARIOS]
    out += [_by_redshift(results, scenario) for scenario in SCENARIOS]
    out += [
        _by_magnitude(results),
        _balance(results),
        _other_skies(results),
        warnings(results),
        *_surveys(results),
        _provenance(results),
    ]
    return [table for table in out if table.rows]


def _triple(results: Results, key: Key, part: str = "all") -> str:
    """bias, sigma_MAD and outliers with their errors, or a dash."""
    numbers = [results.number(key, measure, part) for measure in MEASURES]
    if any(number is None for number in numbers):
        return NONE
    bias, sigma, outliers = numbers
    assert bias is not None and sigma is not None and outliers is not None
    return f"{bias} / {sigma.plain} / {outliers.plain}"


def _approaches(results: Results, plan: Plan, scenario: str) -> Table:
    rows = []
    for sky in ("catalogue", "images"):
        for approach in results.approaches(sky):
            if "images, frozen" in approach:
                continue
            plain = Key(approach, scenario, sky=sky)
            beside = replace(plain, beside=True)
            keys = (
                plain,
                beside,
                replace(plain, estimator="head"),
                replace(beside, estimator="redshelf", correction=CHOSEN),
            )
            if approach == "photometry":
                keys = (*keys[:3], replace(plain, estimator="redshelf", correction=CHOSEN))
            cells = [_triple(results, key) for key in keys]
            if set(cells) != {NONE}:
                rows.append((f"{approach} ({sky})", *cells))
    rows += [(f"{name}, frozen", f"not measured: {why}", NONE, NONE, NONE) for name, why in plan.unmeasured.items()]
    head = ("approach", "kNN on its vectors", "kNN, photometry beside", "its own p(z)", "redshelf's whole fit")
    note = (
        "No correction but in the last column. bias / sigma_MAD / fraction of |dz| > 0.15, dz = (z_phot - z)/(1 + z)."
    )
    return Table(f"Approaches, {TITLES[scenario]}", note, head, tuple(rows))


def _corrections(results: Results, scenario: str) -> Table:
    rows = []
    for estimator in ("knn40", "knn", "lightgbm", "network", "redshelf"):
        bare = Key("photometry", scenario, estimator)
        for correction in (*CORRECTIONS, CHOSEN):
            key = replace(bare, correction=correction)
            scores = _triple(results, key)
            if scores == NONE:
                continue
            of = replace(bare, estimator="knn") if estimator == "redshelf" else bare
            changes = [_verdict(results.change(key, of, m)) if correction != "none" else NONE for m in MEASURES]
            ess = results.mean(key, "ess")
            rows.append(
                (
                    f"{NAMES[estimator]}, {correction}",
                    scores,
                    _triple(results, key, "in"),
                    *changes,
                    f"{ess:,.0f}" if ess else NONE,
                )
            )
    head = ("estimator, correction", "all", "in support", "|bias|", "scatter", "outliers", "ESS")
    note = (
        "Against the truth: what the correction changes beside the same estimator without one (redshelf: beside plain "
        "kNN), paired by seed. ▼ helps, ▲ harms, by more than the standard error; = neither."
    )
    return Table(f"Corrections on photometry, {TITLES[scenario]}", note, head, tuple(rows))


def _verdict(change: Number | None) -> str:
    if change is None:
        return NONE
    mark = "=" if abs(change.value) <= change.error else "▼" if change.value < 0 else "▲"
    return f"{mark} {change}"


def _by_redshift(results: Results, scenario: str) -> Table:
    plain = Key("photometry", scenario)
    ways = {
        "kNN": replace(plain, estimator="knn40"),
        "redshelf": replace(plain, estimator="redshelf", correction=CHOSEN),
    }
    rows = []
    for low, high in pairwise(REDSHIFTS):
        name = f"{low:g}-{high:g}"
        cells = []
        for kind in ("z_true", "z_phot"):
            for way, key in ways.items():
                found = results.number(key, "bias", f"{'all' if way == 'kNN' else 'in'}: {kind} {name}")
                cells.append(NONE if found is None else str(found))
        labels = [d["found"]["labels_by_z"][name] for d in results.by_key.get(plain, ())]
        if set(cells) != {NONE}:
            rows.append((name, f"{sum(labels) / len(labels):,.0f}", *cells))
    head = (
        "redshift",
        "labels",
        "mean of 40, by true z",
        "redshelf in support, by true z",
        "mean of 40, by z_phot",
        "redshelf in support, by z_phot",
    )
    return Table(f"Bias by redshift on photometry, {TITLES[scenario]}", "", head, tuple(rows))


def _by_magnitude(results: Results) -> Table:
    rows = []
    for scenario in SCENARIOS:
        for estimator, correction in (("knn40", "none"), ("knn", "none"), ("lightgbm", "none"), ("redshelf", CHOSEN)):
            key = Key("photometry", scenario, estimator, correction)
            parts = [f"{low:g}-{high:g}" for low, high in pairwise(MAGNITUDES)]
            cells = [_triple(results, key, f"all: magnitude {part}") for part in parts]
            if set(cells) != {NONE}:
                rows.append((scenario, NAMES[estimator], *cells))
    head = ("scenario", "estimator", *(f"i {low:g}-{high:g}" for low, high in pairwise(MAGNITUDES)))
    return Table("By magnitude, on photometry", "Every asked source, in support or not.", head, tuple(rows))


def _balance(results: Results) -> Table:
    rows = []
    for scenario in SCENARIOS:
        for approach, sky, estimator in (
            ("photometry", "catalogue", "knn"),
            ("photometry", "catalogue", "lightgbm"),
            ("photometry network", "catalogue", "head"),
            ("ViT, direct", "images", "head"),
        ):
            key = Key(approach, scenario, estimator, sky=sky)
            both = [_triple(results, k) for k in (key, replace(key, balance=True))]
            if NONE not in both:
                change = _verdict(results.change(replace(key, balance=True), key, "bias"))
                rows.append((scenario, f"{approach}, {NAMES[estimator]}", *both, change))
    head = ("scenario", "approach", "as they are", "classes balanced", "|bias|")
    note = "Every redshift weighs the same in training: 1/n(z) weights, or logit adjustment of a head."
    return Table("Class balance", note, head, tuple(rows))


def _other_skies(results: Results) -> Table:
    rows = []
    for sky, title in (
        ("depths", "half of the field a magnitude shallower"),
        ("infrared", "10 bands, half without Y J H Ks"),
    ):
        for scenario in SCENARIOS:
            key = Key("photometry", scenario, sky=sky)
            ways = (
                key,
                replace(key, correction="neighbour-ratio"),
                replace(key, estimator="redshelf", correction=CHOSEN),
            )
            cells = [_triple(results, way) for way in ways]
            if set(cells) != {NONE}:
                rows.append((title, scenario, *cells))
    wrong = Key("photometry", "s1w")
    cells = [_triple(results, wrong), _triple(results, replace(wrong, correction="neighbour-ratio")), NONE]
    if set(cells) != {NONE}:
        rows.append(("1% of the redshifts wrong", "s1", *cells))
    head = ("sky", "scenario", "kNN", "kNN, neighbour weights", "redshelf")
    return Table("Two depths, missing near-infrared, wrong redshifts (photometry)", "", head, tuple(rows))


def _surveys(results: Results) -> list[Table]:
    rows, stars = [], []
    for survey, documents in results.surveys.items():
        found = documents[0]["found"]
        for answer in found["answers"]:
            cells = []
            for part in ("all", "in"):
                numbers = [
                    over_seeds([d["found"]["answers"][answer]["slices"][part] for d in documents], m) for m in MEASURES
                ]
                cells.append(NONE if None in numbers else f"{numbers[0]} / {numbers[1].plain} / {numbers[2].plain}")  # type: ignore[union-attr]
            rows.append((survey, found["kind"], f"{found['labels']:,} / {found['asked']:,}", answer, *cells))
        seen = [d["found"]["stars"] for d in documents if d["found"]["stars"]]
        if len(seen) > 1:
            mean = {name: sum(s[name] for s in seen) / len(seen) for name in seen[0]}
            shares = (
                f"{mean[name]:.4f}" for name in ("auc", "stars_found", "galaxies_lost", "stars_left_among_galaxies")
            )
            stars.append((survey.split(" ")[0], f"{mean['stars']:,.0f} / {mean['galaxies']:,.0f}", *shares))
    head = ("from, to", "what it is", "labels / asked", "estimator, correction", "all", "in support")
    title = "One survey's redshifts from another's, on real catalogues"
    note = "Real photometry and redshifts: nobody knows the truth beyond these surveys."
    apart = "Stars, apart: told from galaxies by colours (real spectra, out of fold)"
    columns = ("survey", "stars / galaxies", "AUC", "stars found", "galaxies lost", "stars among what is left")
    return [Table(title, note, head, tuple(rows)), Table(apart, "", columns, tuple(stars))]


def _provenance(results: Results) -> Table:
    approaches = list(dict.fromkeys(key.approach for key in results.by_key))
    rows = []
    for approach in approaches:
        found = results.weights(approach)
        rows.append(
            (approach, "; ".join(found[:3]) + (f"; and {len(found) - 3} more, in the CSV" if len(found) > 3 else ""))
        )
    return Table("Where the weights of each approach come from", "", ("approach", "weights"), tuple(rows))
