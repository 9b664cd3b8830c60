"""Is a real galaxy its own nearest neighbour after it was rotated, flipped, made noisier, or lost a band?

    python benchmarks/retrieval.py [--quick] [--check] [--out bench-out/retrieval]

797 peaks of 147 real HSC COSMOS scenes (needs $REDSHELF_DATA, and says so when it is absent). Each encoder embeds them
as they are and as they were changed; recall@1 is the fraction of changed cutouts whose nearest neighbour among all the
originals is their own. Encoders are trained on these peaks, three seeds each; networks that need labels are not here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from common import data_folder
from real_hsc import write_survey

from redshelf.indexing.batches import Reader
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models import checkpoint
from redshelf.models.backbone import observed, visible
from redshelf.models.bank import exact_neighbours
from redshelf.models.encoder import Batch, Encoder
from redshelf.models.fresh import fresh
from redshelf.models.training import seeded
from redshelf.models.views import hidden, noisier, oriented
from redshelf.models.vit import sized
from redshelf.service.ingest import ingest
from redshelf.service.training import Run, pretrain

SEEDS = (0, 1, 2)
Vectors = npt.NDArray[np.float64]


def _noise(factor: float) -> Callable[[Batch], Batch]:
    def noisy(batch: Batch) -> Batch:
        one = torch.ones(batch.state.shape)
        return noisier(batch, one, factor * one)

    return noisy


def _turn(code: int) -> Callable[[Batch], Batch]:
    return lambda batch: oriented(batch, torch.full((len(batch),), code))


def without_one_band(batch: Batch) -> Batch:
    """Each source without one of its bands, drawn at random; a source with one band keeps it."""
    there = observed(batch)
    drawn = torch.where(there, torch.rand(there.shape), -1.0).argmax(dim=1)
    chosen = torch.nn.functional.one_hot(drawn, there.shape[1]).bool() & (there.sum(dim=1, keepdim=True) > 1)
    return hidden(batch, chosen)


CHANGES: dict[str, Callable[[Batch], Batch]] = {
    "rotated by 90 deg": _turn(0b101),
    "flipped": _turn(0b001),
    "noise x 1.4": _noise(2**0.5),
    "noise x 2": _noise(2.0),
    "one band dropped": without_one_band,
}


def embedded(encoder: Encoder, batches: Iterable[Batch], change: Callable[[Batch], Batch] | None = None) -> Vectors:
    """Vectors of every source, (N, dim), as they are or changed; the same noise and bands for every encoder."""
    with seeded(5):
        parts = [encoder.embed(batch if change is None else change(batch)) for batch in batches]
    return torch.cat(parts).double().numpy()


def recall(originals: Vectors, changed: Vectors) -> float:
    """Fraction of `changed` (N, D) whose nearest of `originals` (N, D), standardised by them, is their own."""
    centre, scale = originals.mean(axis=0), originals.std(axis=0) + 1e-9
    _, found = exact_neighbours((originals - centre) / scale, (changed - centre) / scale, 1)
    return float((found[:, 0] == np.arange(len(changed))).mean())


def random_vit(info: ShelfInfo, seed: int) -> Encoder:
    """The transformer with random weights."""
    with seeded(seed):
        return fresh("vit", info.bands, cutout_px=info.cutout_px, size=sized("tiny", patch_px=8))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 steps of training, one seed; no figure to publish")
    parser.add_argument("--check", action="store_true", help="exit 1 unless training raises every mean recall")
    parser.add_argument("--out", type=Path, default=Path("bench-out/retrieval"))
    arguments = parser.parse_args()
    folder = data_folder()
    if folder is None:
        return 0
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    root = arguments.out / "shelf"
    ingest(write_survey(folder / "hsc_cosmos_blends_packed.npz", arguments.out / "survey"), root)
    layout = Layout(root)
    info = layout.read_info()
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    encoders: dict[str, list[Encoder]] = {"random weights": [random_vit(info, seed) for seed in seeds]}
    for objective in ("masked", "contrastive"):
        encoders[objective] = []
        for seed in seeds:
            run = Run(steps=20 if arguments.quick else 600, batch_size=64, seed=seed, progress=sys.stderr.isatty())
            name = f"{objective}-{seed}"
            kept, _ = pretrain(root, name=name, objective=objective, patch_px=8, run=run)
            encoders[objective].append(checkpoint.load(kept))
    reader = Reader(layout, info, bands=info.band_names, needs=frozenset({"pixels"}))
    batches = [reader.read(np.arange(a, min(a + 256, reader.rows))) for a in range(0, reader.rows, 256)]
    batches = [batch.select(visible(batch)) for batch in batches]
    print(f"{sum(map(len, batches))} peaks; recall@1, mean +- standard deviation over {len(seeds)} seeds")
    print("| encoder | " + " | ".join(CHANGES) + " |\n|" + "---|" * (len(CHANGES) + 1))
    means: dict[str, list[float]] = {}
    for name, of_seed in encoders.items():
        found = []
        for encoder in of_seed:
            originals = embedded(encoder, batches)
            found.append([recall(originals, embedded(encoder, batches, change)) for change in CHANGES.values()])
        means[name] = [float(m) for m in np.mean(found, axis=0)]
        spread = np.std(found, axis=0, ddof=1) if len(found) > 1 else [float("nan")] * len(CHANGES)
        print(
            f"| {name} | " + " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(means[name], spread, strict=True)) + " |"
        )
    faults = [
        f"SHORT {change}: best trained {max(trained):.3f}, random weights {untrained:.3f}"
        for change, untrained, *trained in zip(CHANGES, *means.values(), strict=True)
        if max(trained) <= untrained
    ]
    print("\n".join(faults))
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
