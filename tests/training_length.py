"""How long estimators are trained in tests: briefly, but where what they have learned is what is tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from redshelf.models import boost, network

FULL = network.RECIPES, network.WARMUP, boost.ROUNDS
SHORT = {kind: replace(recipe, steps=60) for kind, recipe in network.RECIPES.items()}, 10, 60


@contextmanager
def _trained_by(settings: tuple[dict[str, network.Recipe], int, int]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "RECIPES", settings[0])
        patch.setattr(network, "WARMUP", settings[1])
        patch.setattr(boost, "ROUNDS", settings[2])
        yield


@contextmanager
def short() -> Iterator[None]:
    """A fit takes a second or two; so it is everywhere in the tests, see conftest."""
    with _trained_by(SHORT):
        yield


@contextmanager
def full() -> Iterator[None]:
    """As users train. Around a fit and nothing else: what other tests share must not depend on who makes it first."""
    with _trained_by(FULL):
        yield
