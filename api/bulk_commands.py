"""The commands that work in parts, over every source: here, by a task of SLURM or on Ray."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from redshelf.api.arguments import progress, shelf_of, tell

if TYPE_CHECKING:
    from redshelf.service.outputs import What


def _in_parts(
    arguments: Namespace,
    *,
    do: Callable[..., Any],
    commit: Callable[[], Any],
    commit_or_resubmit: Callable[[], Any],
    make_plan: Callable[..., Any],
    submit: Callable[..., Any],
    whole: Callable[..., Any],
) -> Any:
    """What is asked of a command that works in parts: one step of it, as a scheduler calls them, or the whole."""
    if arguments.part is not None or arguments.task is not None:
        return do(part=arguments.part, task=arguments.task)
    on_slurm = arguments.runner == "slurm"
    if arguments.commit:
        return commit_or_resubmit() if on_slurm else commit()
    if arguments.plan:
        plan = make_plan(task_parts=arguments.task_parts)
        return {"parts": 0} if plan is None else {"plan": plan.id, "parts": plan.parts, "tasks": plan.tasks}
    if on_slurm:
        return submit(task_parts=arguments.task_parts, settings=arguments.slurm)
    return whole(runner=arguments.runner, progress=progress())


def _processes(arguments: Namespace) -> int:
    return 1 if arguments.processes is None else int(arguments.processes)


def ingest(arguments: Namespace) -> int:
    from redshelf.service import ingest

    what = arguments.survey, shelf_of(arguments)
    how = {"update": arguments.update, "part_rows": arguments.part_rows}
    found = _in_parts(
        arguments,
        do=partial(ingest.do, *what),
        commit=partial(ingest.commit, *what),
        commit_or_resubmit=partial(ingest.commit_or_resubmit, *what),
        make_plan=partial(ingest.make_plan, *what, **how),
        submit=partial(ingest.submit, *what, **how),
        whole=partial(ingest.ingest, *what, **how, processes=_processes(arguments)),
    )
    return tell(found, arguments)


def embed(arguments: Namespace) -> int:
    from redshelf.service import bulk
    from redshelf.service.embedding import Pretrained, embed

    shelf, encoder = shelf_of(arguments), arguments.encoder
    options = Pretrained(
        input_px=arguments.input_px,
        pca=arguments.pca,
        photometry=arguments.with_photometry,
        space=arguments.space,
        sha256=arguments.sha256,
        random_seed=arguments.random_seed,
    )
    how: dict[str, Any] = {"weights": arguments.weights, "options": options, "part_rows": arguments.part_rows}
    doing: dict[str, Any] = {"batch_size": arguments.batch_size, "device": arguments.device}

    def whole(**runner: Any) -> dict[str, Any]:
        revision, rows = embed(shelf, encoder=encoder, **how, **doing, **runner)
        return {"revision": revision, "rows": rows}

    found = _in_parts(
        arguments,
        do=partial(bulk.do, shelf, encoder=encoder, **doing),
        commit=lambda: {"rows": bulk.commit(shelf, encoder=encoder)},
        commit_or_resubmit=partial(bulk.commit_or_resubmit, shelf, encoder=encoder),
        make_plan=partial(bulk.make_plan, shelf, encoder=encoder, **how),
        submit=partial(bulk.submit, shelf, encoder=encoder, **how, gpu=arguments.gpu),
        whole=whole,
    )
    return tell({"encoder": encoder, **found}, arguments)


def index(arguments: Namespace) -> int:
    from redshelf.service import index

    shelf, encoder = shelf_of(arguments), arguments.encoder
    memory = None if arguments.memory is None else index.size_of(arguments.memory)
    how: dict[str, Any] = {"memory": memory, "recall": arguments.recall, "part_rows": arguments.part_rows}
    found = _in_parts(
        arguments,
        do=partial(index.do, shelf, encoder=encoder),
        commit=partial(index.commit, shelf, encoder=encoder),
        commit_or_resubmit=partial(index.commit_or_resubmit, shelf, encoder=encoder),
        make_plan=partial(index.make_plan, shelf, encoder=encoder, **how),
        submit=partial(index.submit, shelf, encoder=encoder, **how),
        whole=partial(index.build_index, shelf, encoder=encoder, **how, processes=_processes(arguments)),
    )
    if isinstance(found, tuple):  # it is built
        revision, told = found
        found = {
            "revision": revision,
            "kind": told["kind"],
            "recall": told["recall"]["value"],
            "table": told.get("table", []),
        }
    return tell({"encoder": encoder, **found}, arguments)


def _output(arguments: Namespace, what: What, **of_its_own: Any) -> int:
    from redshelf.service import outputs

    shelf, path = shelf_of(arguments), arguments.path
    asked = outputs.Asked(
        what,
        encoder=arguments.encoder,
        generation=arguments.generation,
        part_rows=arguments.part_rows,
        **of_its_own,
    )
    found = _in_parts(
        arguments,
        do=partial(outputs.do, shelf, path, what),
        commit=partial(outputs.commit, shelf, path, what),
        commit_or_resubmit=partial(outputs.commit_or_resubmit, shelf, path, what),
        make_plan=partial(outputs.make_plan, shelf, path, asked),
        submit=partial(outputs.submit, shelf, path, asked),
        whole=partial(outputs.write, shelf, path, asked, processes=_processes(arguments)),
    )
    told = found if isinstance(found, dict) else {"path": found.path, "sources": found.sources, **found.facts}
    return tell(told, arguments)


def neighbours(arguments: Namespace) -> int:
    return _output(arguments, "neighbours", k=arguments.k)


def redshift(arguments: Namespace) -> int:
    return _output(arguments, "redshift", estimator=arguments.estimator)
