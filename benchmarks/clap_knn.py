"""The adaptive kNN of CLAP beside the plain one, under a real covariate shift: E3b of zCOSMOS, five draws.

How many neighbours by local PITs or by the CDE loss; the paper's equal neighbours, or tapered ones with a plane; with
and without recalibration and shift weights; as a harmonic ensemble; refitted by a network. Scores on the target, and
objects a second in the first draw. Run: `python benchmarks/clap_knn.py` (`--quick`: one draw, an ensemble of 3, a short
refit). `--check` prints the same: no number is asked of this table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import zcosmos_draws

from redshelf.models import metrics
from redshelf.models.adaptive import AdaptiveKnn
from redshelf.models.adaptive_fit import fit_adaptive
from redshelf.models.ensemble import bootstraps, harmonic_mean
from redshelf.models.frame import fit_frame
from redshelf.models.knn import KnnRedshift, fit_knn
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.refit import fit_refit
from redshelf.models.shift import neighbour_weights
from redshelf.models.support import fit_support

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
COLUMNS = ("bias", "sigma_MAD", "outliers", "CDE loss", "PIT KS", "68% in", "95% in")


def scores(pdf: Pdf, z: Floats) -> Floats:
    """What `COLUMNS` says, of densities against the truth."""
    dz, pit = metrics.delta_z(pdf.median(), z), pdf.pit(z)
    inside = [float(np.mean(np.abs(pit - 0.5) <= level / 2)) for level in (0.68, 0.95)]
    point = [metrics.bias(dz), metrics.sigma_mad(dz), metrics.outlier_fraction(dz)]
    return np.array([*point, metrics.cde_loss(pdf, z), metrics.pit_ks(pit), *inside])


class Table:
    """Rows of scores by method, one a draw."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Floats]] = {}

    def add(self, name: str, pdf: Pdf, z: Floats) -> None:
        self.rows.setdefault(name, []).append(scores(pdf, z))

    def show(self) -> None:
        """Mean over the draws, and their standard deviation in the second line of a method."""
        print(f"{'':44s}" + "".join(f"{name:>10s}" for name in COLUMNS))
        for name, values in self.rows.items():
            print(f"{name:44s}" + "".join(f"{v:+10.4f}" for v in np.mean(values, axis=0)))
            if len(values) > 1:
                print(f"{'  +-':44s}" + "".join(f"{v:10.4f}" for v in np.std(values, axis=0, ddof=1)), flush=True)


def rate(started: float, n: int) -> float:
    return n / (time.perf_counter() - started)


def one_draw(
    draw: zcosmos_draws.Draw, x: Floats, z: Floats, table: Table, *, realisations: int, steps: int
) -> dict[str, float]:
    """Scores of every method on the draw's target into `table`; with `steps` of a refit, objects a second by method."""
    labels, target = draw.labelled, draw.targets["unlabelled"]
    truth, edges = z[labels], default_edges(float(np.expm1(np.log1p(z[labels].max()) + 0.15)))
    frame = fit_frame(x[labels], x[target], zcosmos_draws.NAMES)
    bank, queries = frame.transform(x[labels]), frame.transform(x[target])
    weights = neighbour_weights(bank, queries).weights
    hidden = np.arange(len(labels))[:, None]
    ess = metrics.effective_sample_size(weights)
    print(f"{len(labels)} labels, {len(target)} targets, effective sample size {ess:.0f}")
    for name, importance in (("", np.ones(len(labels))), (", weighted", weights)):
        forced = bool(name)
        plain, _ = fit_knn(bank, truth, edges=edges, importance=importance, exclude=hidden, shift_weights=forced)
        table.add(f"plain kNN{name}", plain.predict(queries).pdf, z[target])
        for shape in ("clap", "local"):
            for choice in ("pit", "cde"):
                model, report = fit_adaptive(
                    bank, truth, edges=edges, importance=importance, exclude=hidden,
                    shape=shape, choice=choice, shift_weights=forced,
                )  # fmt: skip
                title = f"{shape}, k by {'local PIT' if choice == 'pit' else 'CDE loss'}{name}"
                raw = model.predict(queries, recalibrate=False)
                table.add(title, raw.pdf, z[target])
                table.add(f"{title}, recalibrated", model.predict(queries, recalibrate=True).pdf, z[target])
                said = np.quantile(raw.k, [0.05, 0.5, 0.95])
                print(
                    f"  {title}: k {said}, W1 > 0.05 for {raw.not_calibrated.mean():.3f}, "
                    f"parabola of at least {report['least']}{' (chosen)' if report['recalibrates'] else ''}",
                    flush=True,
                )
    # weights left to validation, and everything else too
    model, report = fit_adaptive(bank, truth, edges=edges, importance=weights, exclude=hidden)
    answer = model.predict(queries)
    table.add("chosen by validation", answer.pdf, z[target])
    flagged = answer.not_calibrated
    for name, part in (("flagged", flagged), ("not flagged", ~flagged)):
        if part.sum() >= 100:
            dz = metrics.delta_z(answer.pdf.median(), z[target])[part]
            ks = metrics.pit_ks(answer.pdf.pit(z[target])[part])
            print(f"  {name} {part.mean():.3f}: outliers {metrics.outlier_fraction(dz):.4f}, PIT KS {ks:.3f}")
    losses = "  ".join(f"{key} {value:.2f}" for key, value in report["loss"].items())
    print(
        f"  chosen: {report['chosen']}; weighted loss of unseen labels: {losses}; plain {report['plain']['loss']:.2f}"
    )

    def realised() -> Iterator[Pdf]:
        for rows, own in bootstraps(hidden, n=realisations):
            member, _ = fit_adaptive(
                bank[rows], truth[rows], edges=edges, importance=weights[rows], exclude=own,
                shape=model.shape, choice="pit",
            )  # fmt: skip
            yield member.predict(queries).pdf

    kept = list(realised())
    table.add(f"harmonic ensemble of {realisations}", harmonic_mean(kept), z[target])
    mean = Pdf(edges, np.mean([pdf.density for pdf in kept], axis=0))
    table.add(f"arithmetic mean of the same {realisations}", mean, z[target])
    return measured(model, plain, queries, z[target], truth, table, steps=steps) if steps else {}


def measured(
    model: AdaptiveKnn, plain: KnnRedshift, queries: Rows, z: Floats, labelled: Floats, table: Table, *, steps: int
) -> dict[str, float]:
    """Objects a second of the adaptive kNN, of the plain one at the same largest k, and of the refit, which is scored.

    Half of the target lends the refit its densities where the labels support them; the other half is scored.
    """
    speed = {}
    started = time.perf_counter()
    learnt = replace(model, choice="pit").predict(queries).pdf
    speed["adaptive"] = rate(started, len(queries))
    started = time.perf_counter()
    replace(plain, k=int(model.sizes[-1])).predict(queries)
    speed["plain, its largest k"] = rate(started, len(queries))
    support = fit_support(model.bank, labelled).distance_ratio(queries) <= 1
    seen, unseen = np.array_split(np.random.default_rng(0).permutation(len(queries)), 2)
    started = time.perf_counter()
    network, fitted = fit_refit(
        queries[seen], Pdf(model.edges, learnt.density[seen]), in_support=support[seen], steps=steps
    )
    print(f"  refit in {time.perf_counter() - started:.0f} s: {fitted}")
    many = np.tile(queries, (10, 1))
    started = time.perf_counter()
    for _ in network.blocks(many):
        pass
    speed["refit"] = rate(started, len(many))
    inside = unseen[support[unseen]]
    table.add("other half in support: adaptive (1 draw)", Pdf(model.edges, learnt.density[inside]), z[inside])
    table.add("other half in support: refit (1 draw)", network.predict(queries[inside]), z[inside])
    return speed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--draws", type=int, default=5)
    options = parser.parse_args()
    base = zcosmos_draws.baseline()
    x, z, magnitude = zcosmos_draws.rows(base)
    table, speed = Table(), {}
    for number, draw in enumerate(zcosmos_draws.e3b(base, magnitude, 1 if options.quick else options.draws)):
        steps = 0 if number else 300 if options.quick else 4000
        speed |= one_draw(draw, x, z, table, realisations=3 if options.quick else 10, steps=steps)
        print(f"after {number + 1} draw(s):")
        table.show()
    print("objects/s: " + ", ".join(f"{name} {value:,.0f}" for name, value in speed.items()), flush=True)


if __name__ == "__main__":
    main()
