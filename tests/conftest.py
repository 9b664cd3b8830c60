"""Fixtures for all tests: one small shelf, made once a session the way a user makes one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import small_survey

from redshelf.models import network

FULL = network.RECIPES, network.WARMUP
SHORT = {kind: replace(recipe, steps=60) for kind, recipe in network.RECIPES.items()}, 10


@pytest.fixture(scope="session", autouse=True)
def short_training_of_networks() -> Iterator[None]:
    """Fits take a second instead of half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        _train_by(SHORT, patch)
        yield


@pytest.fixture(scope="module", autouse=True)
def full_training_of_networks(request: pytest.FixtureRequest) -> Iterator[None]:
    """... but in a module that asks for it by FULL_TRAINING."""
    with pytest.MonkeyPatch.context() as patch:
        if getattr(request.module, "FULL_TRAINING", False):
            _train_by(FULL, patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The keys of who runs the tests are none of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def _train_by(settings: tuple[dict[str, network.Recipe], int], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "RECIPES", settings[0])
    patch.setattr(network, "WARMUP", settings[1])


@pytest.fixture(scope="session")
def small_survey_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """survey.toml of 300 blobs in 3 bands, with images and labels."""
    return small_survey.write(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="session")
def tiny_shelf(small_survey_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published shelf of those: encoders `photometry` and `vit` (hardly trained), fits on both. Only to be read."""
    from redshelf.service.embedding import embed
    from redshelf.service.fit import fit
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish
    from redshelf.service.training import Run, pretrain

    root = tmp_path_factory.mktemp("tiny") / "shelf"
    ingest(small_survey_file, root)
    pretrain(root, name="vit", run=Run(steps=3))
    for encoder in ("photometry", "vit"):
        embed(root, encoder=encoder)
        build_index(root, encoder=encoder)
        fit(root, encoder=encoder)
    publish(root)
    return root


@pytest.fixture(scope="session")
def bare_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published shelf without images, labels or redshifts: 60 sources, encoder `photometry`."""
    from redshelf.service.embedding import embed
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish

    root = tmp_path_factory.mktemp("bare") / "shelf"
    ingest(small_survey.write(root.parent, sources=60, images=False, labels=False), root)
    embed(root, encoder="photometry")
    build_index(root, encoder="photometry")
    publish(root)
    return root
