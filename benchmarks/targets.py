"""What 500 new labels are worth to the next redshift fit: by `redshelf targets`, at random, or by magnitude.

    python benchmarks/targets.py [--quick] [--check] [--draws 5] [--modes knn fit] [--out bench-out/targets]

A survey is simulated without images (scenario s1) and put through the `photometry` encoder, as in redshift.py. A draw
takes 10,000 labels by the known probabilities; of the unlabelled sources that the catalogue calls galaxies 20,000 are
the candidates and stand for the target, and 20,000 others, galaxies in truth, are answered for and scored. Stars that
are chosen give no redshift, for every choice alike. *error*: the mean of |z_phot - z| / (1 + z) with outliers, beyond
0.15, counted as 0.15; the gain is by how much 500 more labels lower it. Mode `knn`: the nearest neighbours alone, by
`fit_knn`; `fit`: all that `redshelf fit` does, its default estimator. *possible*: only sources that s1 gives any chance
of a redshift. Each choice of each draw is kept in --out, and a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from redshift_simulated import prepare

from redshelf.indexing.files import write_json
from redshelf.indexing.spectroscopy import draw as spectra
from redshelf.models import acquisition, boost, metrics, network
from redshelf.models.fitting import fit_redshift
from redshelf.models.frame import fit_frame, is_magnitude
from redshelf.models.knn import fit_knn
from redshelf.models.pdf import Pdf, default_edges

Ints = npt.NDArray[np.int64]
SOURCES, QUICK_SOURCES = 500_000, 60_000
LABELS, QUICK_LABELS = 10_000, 3_000
POOL, QUICK_POOL = 20_000, 8_000
DRAWS, QUICK_DRAWS, NEW, SEED = 5, 1, 500, 33
QUICK_STEPS, QUICK_ROUNDS = 40, 20
CHOICES = {
    "knn": ("none", "random", "chosen", "faintest", "flat", "possible random", "possible chosen"),
    "fit": ("none", "random", "chosen"),
}
SCORES = ("error", "mean |dz|", "sigma_MAD", "outliers", "CDE loss", "bias of <z>")
WANTED = 2.0


class Draw:
    """One draw of the labels: rows of the sky that are labelled, candidates and scored."""

    def __init__(self, sky: dict[str, Any], number: int, *, labels: int, pool: int) -> None:
        taken = spectra(sky["chance"], z_true=sky["z"], star=sky["star"], seed=2000 + number)
        self.rng = np.random.default_rng((SEED, number))
        rows = np.flatnonzero(np.isfinite(taken.z_spec) & sky["wanted"])
        self.labelled = np.sort(self.rng.permutation(rows)[:labels])
        rest = sky["wanted"] & ~(taken.taken & sky["star"])  # a star that was observed is classed as one
        rest[self.labelled] = False
        order = self.rng.permutation(np.flatnonzero(rest))
        self.pool, scored = np.sort(order[:pool]), np.sort(order[pool : 2 * pool])
        self.scored = scored[~sky["star"][scored]]
        self.sky, self.number = sky, number

    def choose(self, choice: str, fitted: Fitted) -> Ints:
        """Rows to be observed by this choice."""
        pool, sky = self.pool, self.sky
        rng = np.random.default_rng((SEED, self.number, 1))
        magnitude = sky["features"][pool][:, [is_magnitude(name) for name in sky["names"]]][:, 0]
        if choice.startswith("possible"):
            pool = pool[sky["chance"][pool] > 0]
        if choice == "none":
            return pool[:0]
        if choice.endswith("random"):
            return rng.permutation(pool)[:NEW]
        if choice.endswith("chosen"):
            return pool[fitted.chosen(self.pool, pool, self.number).candidates]
        if choice == "faintest":
            return pool[np.argsort(-magnitude)[:NEW]]
        share = np.histogram(magnitude, 20)  # flat in magnitude
        place = np.digitize(magnitude, share[1][1:-1])
        chance = 1 / share[0][place]
        return rng.choice(pool, NEW, replace=False, p=chance / chance.sum())


class Fitted:
    """A fit of one mode on some labelled rows, for the sources of the pool."""

    def __init__(self, mode: str, sky: dict[str, Any], rows: Ints, pool: Ints, seed: int) -> None:
        self.sky, self.names = sky, tuple(str(name) for name in sky["names"])
        features, self.z = sky["features"][rows].astype(float), sky["z"][rows]
        target = sky["features"][pool].astype(float)
        self.hidden = np.arange(len(rows))[:, None]
        self.model = None
        if mode == "fit":
            self.model = fit_redshift(features, self.z, target, names=self.names, seed=seed, threads=2)
            self.frame, self.knn = self.model.frame, self.model.knn
            return
        self.frame = fit_frame(features, target, self.names)
        edges = default_edges(min(np.expm1(np.log1p(self.z.max()) + 0.15), 20.0))
        self.knn, _ = fit_knn(
            self.frame.transform(features), self.z, edges=edges, importance=np.ones(len(rows)), exclude=self.hidden,
            shift_weights=False, seed=seed,
        )  # fmt: skip

    def pdf(self, rows: Ints) -> Pdf:
        features = self.sky["features"][rows].astype(float)
        if self.model is not None:
            return self.model.predict(features, threads=2).pdf
        return self.knn.predict(self.frame.transform(features)).pdf

    def chosen(self, targets: Ints, candidates: Ints, seed: int) -> acquisition.Chosen:
        own = acquisition.expected_error(self.pdf(targets))
        places = [self.frame.transform(self.sky["features"][rows].astype(float)) for rows in (targets, candidates)]
        return acquisition.choose(self.knn.bank, self.z, self.hidden, places[0], own, places[1], NEW, seed=seed)

    def scores(self, rows: Ints) -> dict[str, float]:
        pdf, z = self.pdf(rows), self.sky["z"][rows]
        dz = metrics.delta_z(pdf.median(), z)
        centres = (pdf.edges[1:] + pdf.edges[:-1]) / 2
        stacked = pdf.density.mean(axis=0) * np.diff(pdf.edges)
        return {
            "error": float(np.minimum(np.abs(dz), acquisition.OUTLIER).mean()),
            "mean |dz|": float(np.abs(dz).mean()),
            "sigma_MAD": metrics.sigma_mad(dz),
            "outliers": metrics.outlier_fraction(dz),
            "CDE loss": metrics.cde_loss(pdf, z),
            "bias of <z>": float((stacked * centres).sum() / stacked.sum() - z.mean()),
        }


def do(sky: dict[str, Any], mode: str, number: int, path: Path, *, labels: int, pool: int) -> dict[str, Any]:
    """Every choice of one draw that `path` does not have yet."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if set(CHOICES[mode]) <= set(found):
        return found
    draw = Draw(sky, number, labels=labels, pool=pool)
    first = Fitted(mode, sky, draw.labelled, draw.pool, number)
    for choice in CHOICES[mode]:
        if choice in found:
            continue
        began = time.perf_counter()
        new = draw.choose(choice, first)
        known = new[~sky["star"][new]]
        fitted = first
        if len(known):
            fitted = Fitted(mode, sky, np.concatenate([draw.labelled, known]), draw.pool, number)
        found[choice] = fitted.scores(draw.scored) | {
            "stars": float(sky["star"][new].mean()) if len(new) else 0.0,
            "mean z": float(sky["z"][known].mean()) if len(known) else float(sky["z"][draw.labelled].mean()),
            "seconds": time.perf_counter() - began,
        }
        write_json(path, found)
        print(
            f"{mode}, draw {number}: {choice} {found[choice]['error']:.5f}, {found[choice]['seconds']:.0f} s",
            flush=True,
        )
    return found


def table(mode: str, draws: list[dict[str, Any]]) -> dict[str, float]:
    """Print the scores of each choice, and return the gain of each over that of the random one."""
    print(f"\n| {mode}, mean of {len(draws)} | " + " | ".join((*SCORES, "gain", "times random", "stars", "<z>")) + " |")
    print("|" + "---|" * (len(SCORES) + 5))
    ratios = {}
    for choice in CHOICES[mode]:
        gains = np.array([draw["none"]["error"] - draw[choice]["error"] for draw in draws])
        beside = "possible random" if choice.startswith("possible") else "random"
        random = np.array([draw["none"]["error"] - draw[beside]["error"] for draw in draws])
        ratios[choice] = float(gains.mean() / random.mean()) if random.mean() else float("nan")
        spread = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        cells = [f"{np.mean([draw[choice][score] for draw in draws]):.4f}" for score in SCORES]
        cells += [f"{gains.mean():.5f} ± {spread:.5f}", "–" if choice == "none" else f"{ratios[choice]:.2f}"]
        cells += [f"{np.mean([draw[choice][name] for draw in draws]):.2f}" for name in ("stars", "mean z")]
        print(f"| {choice} | " + " | ".join(cells) + " |")
    return ratios


def main() -> int:
    """Print the tables; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--draws", type=int, help="of the labels [5, quick 1]")
    parser.add_argument("--modes", nargs="+", choices=tuple(CHOICES), default=list(CHOICES))
    parser.add_argument("--out", type=Path, default=Path("bench-out/targets"))
    arguments = parser.parse_args()
    if arguments.quick:
        network.STEPS, boost.ROUNDS = QUICK_STEPS, QUICK_ROUNDS
    arguments.out.mkdir(parents=True, exist_ok=True)
    sources, labels, pool = (QUICK_SOURCES, QUICK_LABELS, QUICK_POOL) if arguments.quick else (SOURCES, LABELS, POOL)
    with np.load(prepare(arguments.out, "s1", sources), allow_pickle=False) as file:
        sky = {name: file[name] for name in file.files}
    wrong = []
    for mode in arguments.modes:
        draws = [
            do(sky, mode, n, arguments.out / f"{mode}-{sources}-{labels}-{n}.json", labels=labels, pool=pool)
            for n in range(arguments.draws or (QUICK_DRAWS if arguments.quick else DRAWS))
        ]
        ratio = table(mode, draws)["chosen"]
        if not ratio >= WANTED:
            wrong.append(f"{mode}: {NEW} chosen labels lower the error {ratio:.2f} times as much as random ones")
    print("\n".join(wrong))
    return 1 if arguments.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
