"""How fast every encoder is: bare, through `redshelf embed`, in training; and how much memory it takes.

    python benchmarks/encoders.py [--quick] [--check] [--only vit-tiny cnn] [--device cuda] [--out bench-out/encoders]

*bare*: `encoder.embed` on float32 batches in memory. *embed*: the same rows from a simulated shelf (6 bands, 64 px) to
a committed table, by `embed_all`, the batches of the same size. *bare step*: loss, backward and AdamW on a batch in
memory; *train*: `models.training.train` with the reader that the service uses. The two of a pair take turns for a few
rounds; a ratio is the median of the rounds' ratios. Starting Python and reading weights are in none of them. Weights
are random. Each encoder has processes of its own; peaks are of processes that do nothing else, torch included. *matrix
rate*: operations of the bare forward (torch's flop counter) over those of a large bfloat16 product, measured beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_turn, peak_mb
from kinds import KINDS, Kind, objective_of, reader_of, resized
from torch.utils.flop_counter import FlopCounterMode

from redshelf.indexing import embed as bulk
from redshelf.indexing.batches import Reader, in_memory
from redshelf.indexing.layout import Layout
from redshelf.indexing.memory import keep_freed_memory
from redshelf.indexing.simulate import simulate
from redshelf.indexing.vectors import cut
from redshelf.models.encoder import Batch
from redshelf.models.training import Objective, Sampler, train
from redshelf.service.ingest import ingest

EMBED_WANTED = {"cpu": 0.9, "cuda": 0.85}
TRAIN_WANTED = 0.8
SOURCES = 4000
MOST = {"cpu": SOURCES, "cuda": 65_536}  # rows of a shelf with images
CATALOGUE = 2_000_000
QUICK = ("photometry", "network", "vit-tiny", "cnn-0.25")
LEARNING_RATE = 1e-5
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices


@dataclass(frozen=True)
class Plan:
    """What one process measures, and how long."""

    kind: Kind
    device: str
    seconds: float  # a round
    rounds: int
    folder: Path

    @property
    def place(self) -> str:
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def batch_size(self) -> int:
        """What `embed_all` chooses."""
        images = bulk.BATCH_GPU if self.place == "cuda" else bulk.BATCH_CPU
        return images if self.kind.images else bulk.BATCH_FLUXES

    def shelf(self, rows: int) -> Layout:
        """A shelf of so many sources, made when it is first asked for."""
        name = f"{'shelf' if self.kind.images else 'catalogue'}-{rows}"
        whole = Layout(self.folder / "shelf")
        return resized(whole, Layout(self.folder / name), rows, images=self.kind.images)

    def encoder(self) -> Any:
        layout = Layout(self.folder / "shelf")
        info = layout.read_info()
        reader = Reader(layout, info, bands=info.band_names, needs=frozenset({"pixels", "fluxes"}))
        torch.manual_seed(0)
        return self.kind.make(reader, self.folder / "published")


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: str) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def matrix_rate(device: str, side: int) -> float:
    """Operations a second of a bfloat16 product, the best of five."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(5))


def operations(encoder: Any, batch: Batch) -> float:
    """Of the forward pass, a source."""
    counter = FlopCounterMode(display=False)
    with counter:
        encoder.embed(batch)
    return float(counter.get_total_flops()) / len(batch)


def prebuilt(plan: Plan, encoder: Any, rows: int) -> list[Batch]:
    """The batches of the first `rows` sources on the device, without those that no encoder is shown."""
    reader = reader_of(plan.shelf(rows), encoder)
    batches = []
    for first, past in cut((0, rows), plan.batch_size):
        stored = reader.span(first, past)
        batch = reader.batch(stored[stored.visible()])
        batch = batch if batch.pixels is None else replace(batch, pixels=batch.pixels.float())
        batches.append(batch.to(plan.device))
    return batches


def measure_embedding(plan: Plan) -> dict[str, float]:
    """Cutouts a second bare and through `embed_all`."""
    encoder = plan.encoder()
    if isinstance(encoder, torch.nn.Module):
        encoder.to(plan.device)
    size, rows = plan.batch_size, plan.batch_size
    first = prebuilt(plan, encoder, size)[0]
    encoder.embed(first)
    fastest = len(first) / min(seconds(lambda: encoder.embed(first), plan.device) for _ in range(3))
    rows = round(fastest * plan.seconds / size) * size if plan.kind.images else CATALOGUE
    rows = max(size, min(rows, MOST[plan.place])) if plan.kind.images else rows
    batches, shelf = prebuilt(plan, encoder, rows), plan.shelf(rows)

    def bare() -> float:
        def work() -> None:
            for batch in batches:
                encoder.embed(batch)

        return rows / seconds(work, plan.device)

    def whole() -> float:
        shutil.rmtree(shelf.embeddings(encoder.name, encoder.revision), ignore_errors=True)
        return rows / seconds(lambda: bulk.embed_all(shelf, encoder, device=plan.device), plan.device)

    one, other, ratio = in_turn(bare, whole, plan.rounds)
    share = operations(encoder, first) * one / matrix_rate(plan.device, PRODUCT[plan.place])
    return {"rows": rows, "bare": one, "embed": other, "embed_ratio": ratio, "matrix": share}


def training_of(plan: Plan) -> tuple[Objective, Callable[[Any], Batch], Sampler, str]:
    """The objective, the reader of the service, a sampler, and the precision."""
    encoder = plan.encoder()
    reader = reader_of(Layout(plan.folder / "shelf"), encoder)
    fetch, precision = in_memory(reader), "bfloat16"
    objective = objective_of(plan.kind, encoder, reader, device=plan.device).to(plan.device)
    batch_size = 256
    if plan.kind.training == "inputs":
        fetch, precision = lambda indices: Batch(torch.zeros((len(indices), 1), dtype=torch.int8)), "float32"
    elif plan.place == "cpu":  # a step of the service's 128 takes a large network a minute
        few = fetch(np.arange(16)).to(plan.device)
        encoder.embed(few)
        rate = 16 / seconds(lambda: encoder.embed(few), plan.device)
        batch_size = min(128, max(16, 2 ** round(np.log2(rate * plan.seconds / 10))))
    return objective, fetch, Sampler(reader.rows, batch_size, 0), precision


def bare_step(
    objective: Objective, fetch: Callable[[Any], Batch], sampler: Sampler, precision: str, device: str
) -> Callable[[int], None]:
    """One step on one batch in memory, with the dice that `train` gives step number n: masks decide what it costs."""
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=LEARNING_RATE)
    indices = sampler.batch(0)
    batch, places = fetch(indices).to(device), torch.from_numpy(indices).to(device)
    kind = torch.device(device).type

    def step(number: int) -> None:
        torch.manual_seed(int(np.random.SeedSequence((0, number, 0)).generate_state(1, np.uint64)[0] >> 1))
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"):
            loss, _ = objective.loss(batch, places)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def measure_training(plan: Plan) -> dict[str, float]:
    """Steps a second bare and through `train`, both without the first, which waits for the first batch."""
    objective, fetch, sampler, precision = training_of(plan)
    step = bare_step(objective, fetch, sampler, precision, plan.device)
    objective.train()
    step(0)
    spent = statistics.mean(seconds(partial(step, k), plan.device) for k in range(1, 5))
    number = max(4, min(1000, round(plan.seconds / spent)))

    def bare() -> float:
        objective.train()
        step(0)

        def work() -> None:
            for k in range(1, number):
                step(k)

        return (number - 1) / seconds(work, plan.device)

    def whole() -> float:
        options: dict[str, Any] = {"lr": LEARNING_RATE, "precision": precision, "device": plan.device}
        rows = train(objective, fetch, sampler, steps=number, **options).rows
        return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["seconds"] - rows[0]["seconds"])

    one, other, ratio = in_turn(bare, whole, plan.rounds)
    return {"batch": sampler.batch_size, "bare_step": one, "train": other, "train_ratio": ratio}


def peak(plan: Plan) -> dict[str, float]:
    """Largest resident memory of this process so far, in MB, and of the GPU."""
    found = {"host": peak_mb()}
    return found | ({"gpu": torch.cuda.max_memory_allocated() / 2**20} if plan.place == "cuda" else {})


def measure_memory(plan: Plan, what: str) -> dict[str, float]:
    """Peaks of embedding, or of training, of a few batches."""
    if what == "embed-memory":
        encoder = plan.encoder()
        rows = 8 * plan.batch_size if plan.kind.images else CATALOGUE
        shelf = plan.shelf(min(rows, MOST[plan.place]) if plan.kind.images else rows)
        shutil.rmtree(shelf.embeddings(encoder.name, encoder.revision), ignore_errors=True)
        bulk.embed_all(shelf, encoder, device=plan.device)
    else:
        objective, fetch, sampler, precision = training_of(plan)
        train(objective, fetch, sampler, steps=4, lr=LEARNING_RATE, precision=precision, device=plan.device)  # type: ignore[arg-type]
    return {f"{what}-{where}": value for where, value in peak(plan).items()}


def measure(plan: Plan, what: str) -> dict[str, float]:
    keep_freed_memory()
    if what == "embed":
        return measure_embedding(plan)
    return measure_training(plan) if what == "train" else measure_memory(plan, what)


def asked(arguments: argparse.Namespace, kind: Kind, what: str) -> dict[str, Any]:
    """The same of a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--only", kind.name, "--device", arguments.device]
    command += ["--out", str(arguments.out), *(["--quick"] if arguments.quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind.name}, {what}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def line(kind: Kind, found: dict[str, Any]) -> str:
    """One row of the table."""

    def number(key: str, form: str) -> str:
        return format(found[key], form) if key in found else "–"

    def rate(key: str) -> str:
        return number(key, ",.0f" if found.get(key, 0) >= 100 else ".3g")

    memory = " / ".join(number(f"{what}-memory-host", ",.0f") for what in ("embed", "train"))
    if "embed-memory-gpu" in found:
        memory += " + " + " / ".join(number(f"{what}-memory-gpu", ",.0f") for what in ("embed", "train"))
    cells = [kind.name, number("rows", ",.0f"), rate("bare"), rate("embed"), number("embed_ratio", ".2f")]
    cells += [number("matrix", ".0%"), number("batch", ".0f"), rate("bare_step"), rate("train")]
    return "| " + " | ".join([*cells, number("train_ratio", ".2f"), memory]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds, four small encoders; no figure to publish")
    parser.add_argument("--check", action="store_true", help="exit 1 if a ratio falls short")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("bench-out/encoders"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    place = "cuda" if arguments.device.startswith("cuda") else "cpu"
    out = arguments.out / ("quick" if arguments.quick else "full")
    length = (1.0, 3) if arguments.quick else (5.0, 3)
    if arguments.measure:
        plan = Plan(KINDS[arguments.only[0]], arguments.device, *length, folder=out)
        print(json.dumps(measure(plan, arguments.measure)))
        return 0
    if not (out / "shelf" / "shelf.toml").is_file():
        shutil.rmtree(out, ignore_errors=True)
        survey = simulate(out / "survey", sources=SOURCES // 4 if arguments.quick else SOURCES)
        print(ingest(survey, out / "shelf"))
        shutil.rmtree(out / "survey")
    threads = torch.get_num_threads()
    print(f"\n{arguments.device}, {threads} threads, 6 bands, 64 px, bfloat16, batches of {bulk.BATCH_CPU} on a CPU\n")
    print(
        "| encoder | rows | bare /s | embed /s | ratio | of matrix rate | batch | bare steps /s | train /s | ratio |",
        end="",
    )
    print(" peak MB embed / train |\n" + "|---" * 11 + "|", flush=True)
    faults = []
    for kind in (KINDS[name] for name in arguments.only or (QUICK if arguments.quick else KINDS)):
        if kind.gpu_only and place == "cpu":
            continue
        parts = ["embed", "embed-memory", *(["train", "train-memory"] if kind.training else [])]
        found = {key: value for what in parts for key, value in asked(arguments, kind, what).items()}
        print(line(kind, found), flush=True)
        for key, wanted in (("embed_ratio", EMBED_WANTED[place]), ("train_ratio", TRAIN_WANTED)):
            if found.get(key, 1) < wanted:
                faults.append(f"{kind.name}: {key.removesuffix('_ratio')} at {found[key]:.2f}, wanted {wanted}")
    for fault in faults:
        print(f"SHORT {fault}")
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
