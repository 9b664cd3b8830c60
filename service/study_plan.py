"""What the study asks, as jobs: skies, pretraining, spaces (an encoder and one draw of labels), and cells (one answer).

A cell is an approach's space, an estimator, a correction, class balance, a scenario of labels and a seed. Not every
combination is run: kNN, which is cheap, meets every correction in every space; the others where they tell something.

Scenarios: `s0`, `s1`, `s2` of `indexing/spectroscopy`; `s1w`, with 1% of the redshifts wrong; `s1@0.25`, a quarter of
the way from s0 to s1. Which sources may be labelled and which are asked for never overlap, whatever the scenario.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from redshelf.models.errors import BadInput

OPTICAL = ("u", "g", "r", "i", "z", "y")
INFRARED = (*OPTICAL, "Y", "J", "H", "Ks")
SCENARIOS = ("s0", "s1", "s2")
STRENGTHS = ("s1@0.25", "s1@0.5", "s1@0.75")
PUBLISHED = ("dino", "dinov2", "clip")
WEIGHTS = ("neighbour-ratio", "cunha", "classifier", "strata", "ulsif", "rulsif", "kmm")
Estimator = Literal["knn40", "knn", "lightgbm", "network", "head", "redshelf"]  # knn40: the textbook's mean of 40
LIN, PHOTOZ, DIMMED, CHOSEN = "lin2022", "photoz-labels", "dimmed-labels", "chosen"
CORRECTIONS = ("none", *WEIGHTS, LIN, PHOTOZ, DIMMED)  # `chosen`: what redshelf takes by its own validation
MOST_SEEDS = 20


@dataclass(frozen=True)
class Sky:
    """One simulated survey; without `images` only its catalogue is drawn. The switches are those of `simulate`."""

    name: str
    sources: int
    bands: tuple[str, ...] = OPTICAL
    images: bool = False
    two_depths: bool = False
    missing_nir: bool = False


@dataclass(frozen=True)
class Pretraining:
    """A transformer trained on `images` cutouts without labels; `semi`: with those of a scenario in its batches."""

    objective: str
    images: int
    seed: int
    semi: str = ""

    @property
    def name(self) -> str:
        return f"{self.objective}{'-' + self.semi if self.semi else ''}-{self.images}-{self.seed}"


@dataclass(frozen=True)
class Space:
    """An approach brought to one draw of labels: the vectors of labelled and asked sources.

    `start`: what it begins from, a pretraining's name, an architecture, one of `PUBLISHED`, or nothing for photometry;
    `mode`: "frozen", or how labels change it (`specialise`). `balance` is of the head's classes.
    """

    approach: str
    sky: str
    scenario: str
    seed: int
    start: str = ""
    mode: str = "frozen"
    photometry: bool = False
    balance: bool = False
    fraction: float = 1.0

    @property
    def name(self) -> str:
        what = f"{self.start or 'photometry'}.{self.mode}{'+p' * self.photometry}{'.balanced' * self.balance}"
        return f"{self.sky}.{self.scenario}.{self.fraction:g}.{self.seed}.{what}"

    @property
    def plain(self) -> Space:
        """Photometry alone with the same labels: what corrections weigh by, and what stands beside embeddings."""
        return Space("photometry", self.sky, self.scenario, self.seed, fraction=self.fraction)

    @property
    def has_head(self) -> bool:
        return self.mode != "frozen"


@dataclass(frozen=True)
class Cell:
    """One answer for every asked source, scored; `beside`: photometry stands beside the vectors."""

    space: Space
    estimator: Estimator = "knn"
    correction: str = "none"
    balance: bool = False
    beside: bool = False

    @property
    def name(self) -> str:
        beside, balanced = "+photometry" * self.beside, ".balanced" * (self.balance and not self.space.balance)
        return f"{self.space.name}{beside}.{self.estimator}.{self.correction}{balanced}"


@dataclass(frozen=True)
class Survey:
    """One survey's redshifts asked from another's, on real catalogues (`study_real`); `what` says how they differ."""

    survey: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.survey}.{self.seed}"


Job = Pretraining | Space | Cell | Survey


@dataclass(frozen=True)
class Budget:
    """Sizes of a study. `curve`: numbers of unlabelled images, the largest is what pretrained encoders see.

    `labels`, `targets`: at most so many of each in a draw. `everything`: every correction meets every estimator.
    """

    images: int
    catalogue: int
    curve: tuple[int, ...]
    size: str
    pretrain_steps: int
    label_steps: int  # of trainings that move an image encoder
    network_steps: int  # of the network on photometry
    cnn_steps: int
    cnn_width: float
    labels: int
    targets: int
    seeds: tuple[int, ...]
    everything: bool = False

    def document(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


QUICK = Budget(1_000, 6_000, (1_000,), "tiny", 10, 10, 100, 5, 0.125, 400, 1_000, (0, 1))
TINY = Budget(20_000, 120_000, (1_000, 4_000, 20_000), "tiny", 300, 150, 1_500, 60, 0.25, 4_000, 6_000, (0, 1, 2))
FULL = Budget(
    1_000_000, 1_000_000, (10_000, 100_000, 1_000_000), "base", 100_000, 20_000, 3_000, 60_000, 1.0, 50_000,
    60_000, (0, 1, 2, 3, 4), everything=True,
)  # fmt: skip
BUDGETS = {"quick": QUICK, "tiny": TINY, "full": FULL}


@dataclass(frozen=True)
class Plan:
    """All jobs, by stage; later stages read what earlier ones left. `unmeasured`: approaches, and why they are none."""

    skies: tuple[Sky, ...]
    weights: tuple[Pretraining, ...]
    spaces: tuple[Space, ...]
    cells: tuple[Cell | Survey, ...]
    unmeasured: dict[str, str]


def make(
    budget: Budget, *, quick: bool = False, published: frozenset[str] = frozenset(), surveys: tuple[str, ...] = ()
) -> Plan:
    """The jobs of a study, the most telling first. `published`: encoders whose weights there are."""
    if not 1 <= len(budget.seeds) <= MOST_SEEDS:
        raise BadInput(f"{len(budget.seeds)} seeds: expected 1 to {MOST_SEEDS}")
    skies = [Sky("images", budget.images, images=True), Sky("catalogue", budget.catalogue)]
    if not quick:
        half = budget.catalogue // 2
        skies += [Sky("depths", half, two_depths=True), Sky("infrared", half, INFRARED, missing_nir=True)]
    weights = _pretrainings(budget, quick=quick)
    spaces = [space for seed in budget.seeds for space in _spaces(budget, seed, published, quick=quick)]
    cells = [cell for space in spaces for cell in _cells(space, budget, quick=quick)]
    cells = list(dict.fromkeys(cells))
    cells.sort(key=lambda cell: (cell.space.sky != "catalogue", cell.space.seed, cell.estimator == "redshelf"))
    wanted = dict.fromkeys([*(cell.space.plain for cell in cells), *spaces])
    real = [Survey(name, seed) for name in surveys for seed in budget.seeds]
    missing = {name: "no published weights were given (--weights)" for name in PUBLISHED if name not in published}
    return Plan(tuple(skies), tuple(weights), tuple(wanted), (*real, *cells), missing)


def _pretrainings(budget: Budget, *, quick: bool) -> list[Pretraining]:
    most = budget.curve[-1]
    jobs = [Pretraining("masked", most, seed) for seed in budget.seeds]
    if quick:
        return jobs
    jobs += [Pretraining("contrastive", most, seed) for seed in budget.seeds]
    jobs += [Pretraining("masked", most, seed, semi) for semi in SCENARIOS for seed in budget.seeds]
    return jobs + [Pretraining("masked", few, seed) for few in budget.curve[:-1] for seed in budget.seeds]


def _spaces(budget: Budget, seed: int, published: frozenset[str], *, quick: bool) -> list[Space]:
    most = budget.curve[-1]
    masked, contrastive = f"masked-{most}-{seed}", f"contrastive-{most}-{seed}"
    out = []
    for scenario in SCENARIOS:
        out += [
            Space("photometry", "catalogue", scenario, seed),
            Space("photometry network", "catalogue", scenario, seed, mode="direct"),
            Space("photometry", "images", scenario, seed),
        ]
        if quick and scenario == "s2":
            continue
        image: list[tuple[str, str, str]] = [("masked, frozen", masked, "frozen"), ("ViT, direct", "vit", "direct")]
        if not quick:
            image += [
                ("masked, fine-tuned", masked, "finetune"),
                ("masked with redshifts, frozen", f"masked-{scenario}-{most}-{seed}", "frozen"),
                ("contrastive, frozen", contrastive, "frozen"),
                ("contrastive, fine-tuned", contrastive, "finetune"),
                ("CNN (Treyer), direct", "cnn", "direct"),
                ("multimodal CNN (Ait Ouahmed), direct", "multimodal-cnn", "direct"),
            ]
            out += [
                Space("photometry network", "images", scenario, seed, mode="direct"),
                Space("photometry network", "catalogue", scenario, seed, mode="direct", balance=True),
                Space("ViT, direct", "images", scenario, seed, "vit", "direct", balance=True),
                Space(
                    "masked, fine-tuned with photometry", "images", scenario, seed, masked, "finetune", photometry=True
                ),
            ]
        image += [(f"{name}, frozen", name, "frozen") for name in PUBLISHED if name in published]
        out += [Space(approach, "images", scenario, seed, start, mode) for approach, start, mode in image]
    if quick:
        return out
    out += [Space("photometry", "catalogue", scenario, seed) for scenario in ("s1w", *STRENGTHS)]
    out += [Space("photometry", "depths", scenario, seed) for scenario in ("s0", "s1")]
    out += [Space("photometry", "infrared", scenario, seed) for scenario in SCENARIOS]
    out += [
        Space(name, "catalogue", "s1", seed, mode=mode, fraction=fraction)
        for fraction in (0.1, 0.3)
        for name, mode in (("photometry", "frozen"), ("photometry network", "direct"))
    ]
    out += [
        Space(approach, "images", "s0", seed, start, mode, fraction=0.1)
        for approach, start, mode in (("ViT, direct", "vit", "direct"), ("masked, fine-tuned", masked, "finetune"))
    ]
    out += [
        Space(f"masked on {few:,} images, frozen", "images", "s0", seed, f"masked-{few}-{seed}")
        for few in budget.curve[:-1]
    ]
    return out


def _cells(space: Space, budget: Budget, *, quick: bool) -> list[Cell]:
    """The answers asked of one space."""
    head = [Cell(space, "head", balance=space.balance)] if space.has_head else []
    if space.balance:
        return head
    corrections = ("none", "neighbour-ratio", "classifier", LIN) if quick else CORRECTIONS
    if space.fraction < 1 or "@" in space.scenario or space.scenario == "s1w":
        return [*head, *(Cell(space, "knn", way) for way in ("none", "neighbour-ratio"))]
    if " images, " in space.approach:
        return [Cell(space, "knn")]
    if quick and space.sky == "images":
        return [*head, Cell(space), *([Cell(space, beside=True)] if space.start else [])]
    cells = [*head, *(Cell(space, "knn", way) for way in corrections), Cell(space, balance=True)]
    if space.start:
        cells += [Cell(space, "knn", way, beside=True) for way in ("none", "neighbour-ratio", "classifier")]
    if space.approach == "photometry" and (space.sky != "images" or budget.everything):
        cells += [Cell(space, "knn40", way) for way in ("none", *(way for way in corrections if way in WEIGHTS))]
        if quick:
            return [*cells, Cell(space, "lightgbm"), *([Cell(space, "redshelf", CHOSEN)] * (space.scenario == "s1"))]
        cells.append(Cell(space, "redshelf", CHOSEN))
        cells += [
            Cell(space, "lightgbm", way) for way in ("none", "neighbour-ratio", "classifier", LIN, PHOTOZ, DIMMED)
        ]
        cells.append(Cell(space, "lightgbm", balance=True))
        cells += [Cell(space, "network", way) for way in ("none", "neighbour-ratio", PHOTOZ)]
    elif not quick and space.start and space.mode in ("finetune", "frozen"):
        cells += [Cell(space, "redshelf", CHOSEN, beside=True)]
    if budget.everything:
        cells += [
            Cell(space, estimator, way, balance, beside)
            for estimator in ("knn", "lightgbm", "network")
            for way in CORRECTIONS
            for balance in (False, True)
            for beside in ((False, True) if space.start else (False,))
        ]
    return list(dict.fromkeys(cells))
