"""Answers as text for a terminal: aligned tables, numbers with sensible digits, an en dash for what is not known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from redshelf.service.answers import NeighboursAnswer, RedshiftAnswer

if TYPE_CHECKING:
    from redshelf.service.check import Checked
    from redshelf.service.demo import DemoReport
    from redshelf.service.fit import FitReport
    from redshelf.service.status import Progress, Status
    from redshelf.service.targets import Targets

UNKNOWN = "–"
SHOWN = 20  # lines of a table that a file is for


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns aligned: the first `left` to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    lines = []
    for row in (heads, *rows):
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def neighbours(answer: NeighboursAnswer, query: str = "") -> str:
    """The table of a search, and how it was searched; `query` is what was asked about where that is no source."""
    rows = [
        (
            n.source_id,
            f"{n.distance:#.4g}",
            fixed(n.z_spec, 4),
            fixed(n.z_phot, 3),
            n.object_class,
            fixed(n.ra_deg, 5),
            f"{n.dec_deg:+.5f}",
        )
        for n in answer.neighbours
    ]
    found = table(("source", "distance", "z_spec", "z_phot", "class", "ra", "dec"), rows)
    how = "exact search" if answer.exact else f"recall {answer.recall:.3f}"
    missing = f"; without {', '.join(answer.bands_missing)}" if answer.bands_missing else ""
    space = f"by {answer.encoder} ({answer.revision}), {how}, of {answer.n_matching} sources"
    return f"like {answer.query or query}, {space}{missing}\n{found}"


def redshift(answer: RedshiftAnswer) -> str:
    """The redshift in one or two lines: value, intervals, support."""
    by = f"{answer.estimator} on {answer.encoder}, {answer.n_neighbours} labelled neighbours"
    if answer.z_median is None:
        value = "no redshift"
    else:
        value = f"z = {answer.z_median:.4f}  68% [{fixed(answer.z_q16, 4)}, {fixed(answer.z_q84, 4)}]"
        if answer.interval_95:
            value += f"  95% [{answer.interval_95[0]:.4f}, {answer.interval_95[1]:.4f}]"
    support = answer.support
    words = "in support" if support.in_support else "NOT in support"
    reasons = f": {'; '.join(support.reasons)}" if support.reasons else ""
    return f"{value}  ({by})\n{words}{reasons}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or UNKNOWN
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value[:5])) + (f", ... ({len(value)})" if len(value) > 5 else "") or UNKNOWN
    return UNKNOWN if value is None else str(value)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def targets(found: Targets) -> str:
    """The first sources to observe, and what all of them are expected to be worth."""
    told, rows = found.facts, found.table.slice(0, SHOWN).to_pylist()
    cells = [
        (
            row["source_id"],
            str(row["rank"]),
            fixed(row["ra_deg"], 5),
            f"{row['dec_deg']:+.5f}",
            fixed(row["magnitude"], 2),
            fixed(row["z_phot"], 3),
            f"{row['expected_gain']:.2e}",
        )
        for row in rows
    ]
    head = f"{told['n']} of {told['n_matching']} galaxies without a label, by {told['encoder']} ({told['revision']})"
    worth = (
        f"expected error of {told['n_targets']} targets {told['expected_error']:.4f}: lower by "
        f"{told['expected_gain_of_all']:.5f}, at random by {told['expected_gain_at_random']:.5f}"
    )
    more = f"\n... and {told['n'] - len(rows)} more: -o FILE writes them all" if told["n"] > len(rows) else ""
    return f"{head}\n{worth}\n{table(('source', 'rank', 'ra', 'dec', told['mag_band'], 'z_phot', 'gain'), cells)}{more}"


def facts(values: Any, *, as_json: bool) -> str:
    """A report (a dataclass or a mapping) as aligned lines, or as JSON."""
    document = asdict(values) if is_dataclass(values) and not isinstance(values, type) else dict(values)
    if as_json:
        return json.dumps(document, default=_plain)
    flat: dict[str, Any] = {}
    for key, value in document.items():
        is_nested = isinstance(value, Mapping) and all(isinstance(inner, Mapping) for inner in value.values())
        label = key.replace("_", " ")
        flat |= {f"{label} {name}": inner for name, inner in value.items()} if is_nested else {label: value}
    width = max(len(label) for label in flat)
    return "\n".join(f"{label:<{width}}  {_cell(value)}" for label, value in flat.items())


def fit(report: FitReport) -> str:
    """Scores on held-out labels, as they are and weighted to the target."""
    rows = [
        (
            name + (" *" if name == report.details["default_estimator"] else ""),
            which,
            f"{score['ess']:.0f}",
            fixed(score["bias"], 4),
            fixed(score["sigma_mad"], 4),
            fixed(score["outliers"], 4),
        )
        for name, scores in report.details["validation"].items()
        for which, score in scores.items()
        if which in ("unweighted", "weighted")
    ]
    head = f"{report.encoder}: {report.labels} labels, {report.targets} targets, in {report.folder.name}"
    return f"{head}\n{table(('estimator', 'labels', 'effective', 'bias', 'sigma_MAD', 'outliers'), rows, left=2)}"


def _progress(what: str, e: Progress) -> str:
    of = e.output or e.encoder or "ingest"
    said = f"\n{what:<10} {of}: {e.done} of {e.parts} parts, {e.rows_done} of {e.rows} sources"
    if e.rate is not None and e.seconds_left is not None:
        said += f", {e.rate:.0f} a second, {timedelta(seconds=round(e.seconds_left))} left"
    return said + (f"; SLURM jobs {', '.join(e.jobs)}" if e.jobs else "")


def status(found: Status) -> str:
    """What there is, then what is missing."""
    lines = [
        f"survey     {found.survey}, bands {' '.join(found.bands)}",
        f"sources    {found.n_sources}",
        f"labels     {found.n_labels}",
        f"cutouts    {found.n_cutouts}" + ("" if found.has_images else " (a survey without images)"),
        f"published  {f'generation {found.generations[-1]}' if found.generations else UNKNOWN}",
    ]
    if found.encoders:
        rows = [
            (e.name, e.revision, str(e.embedded), fixed(e.recall, 3), ", ".join(e.fits) or UNKNOWN)
            for e in found.encoders
        ]
        lines += ["", table(("encoder", "revision", "embedded", "recall", "fits"), rows, left=2)]
    told = [f"{e.name} ({e.method}, generation {e.generation}, {e.sources} sources)" for e in found.maps]
    lines += [f"\nmaps       {', '.join(told)}"] if told else []
    plans = {"embedding": found.embedding, "index": found.indexing, "output": found.outputs}
    plans = {"cutouts": [found.ingest] if found.ingest is not None else [], **plans}
    lines += [_progress(what, plan) for what, some in plans.items() for plan in some]
    lines += ["", *[f"missing: {line}" for line in found.missing]] if found.missing else []
    return "\n".join(lines)


def checked(found: Checked) -> str:
    """A line for each fault, then the notes; where there is no fault also what was looked at."""
    lines = [*found.faults, *[f"note: {line}" for line in found.notes]]
    if found.faults:
        return "\n".join(lines)
    which = f"generation {', '.join(map(str, found.generations))}: " if found.generations else ""
    files = f"{found.files} files ({found.bytes / 1e6:,.1f} MB) as published, " if found.generations else ""
    rows = ", ".join(f"{count} rows of {name}" for name, count in found.tables.items())
    return "\n".join([*lines, f"{which}{files}{rows}, {found.models} models: no fault"])


def demo(report: DemoReport) -> str:
    """The demo's answers beside the truth, and its table."""
    rows = [
        (s.encoder, s.estimator, s.sources, str(s.n), fixed(s.bias, 4), fixed(s.sigma_mad, 4), fixed(s.outliers, 4))
        for s in report.scores
    ]
    heads = ("features", "estimator", "sources", "n", "bias", "sigma_MAD", "outliers")
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    return "\n\n".join(
        (
            neighbours(report.neighbours),
            f"{redshift(report.redshift)}\ntruth: z = {report.z_true:.4f}",
            table(heads, rows, left=3),
            took,
        )
    )
