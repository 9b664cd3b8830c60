"""The page in a real browser: what a person sees, without JavaScript of ours and without another host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--virtual-time-budget=10000",
]


def _browse(arguments: list[str], folder: Path) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_source_page_shows_its_redshift_and_a_grid_of_pictures(url: str, tmp_path: Path) -> None:
    dom = _browse(["--dump-dom", f"{url}/source/s0010?k=12"], tmp_path)
    assert dom.count('class="card"') == 12
    assert "<svg" in dom and "How far away" in dom and "Similar galaxies" in dom


def test_the_page_is_drawn(url: str, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "page.png"
    _browse(["--window-size=1280,1200", f"--screenshot={picture}", f"{url}/source/s0010?k=12"], tmp_path)
    with Image.open(picture) as image:
        assert image.size == (1280, 1200)
        assert len(set(image.convert("RGB").resize((160, 150)).get_flattened_data())) > 500, (
            "photographs, not blank boxes"
        )


def test_an_error_is_said_in_words_beside_the_box(url: str, tmp_path: Path) -> None:
    dom = _browse(["--dump-dom", f"{url}/?q=nowhere"], tmp_path)
    assert "no source" in dom and "<input" in dom
