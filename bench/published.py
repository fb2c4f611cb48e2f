"""Figures from papers: results/published/*.json. Nothing in them was measured by this project."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

from bench.errors import BenchError

_CHECKOUT = Path(__file__).parents[1] / "results" / "published"
PUBLISHED = _CHECKOUT if _CHECKOUT.is_dir() else Path(sysconfig.get_path("data")) / "share" / "unlearnbench" / "published"
"""Of the checkout that this is in, or what was installed with the package."""


def read_published(folder: Path = PUBLISHED) -> dict[str, Any]:
    """unlearncanvas.json: `rows`, each with id, method, concepts, protocol, source and figures in per cent, and `tolerance_points`.

    BenchError without it.
    """
    return _read(folder / "unlearncanvas.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise BenchError(f"{path} is not here: install the package again, or give --published with its folder.") from error
    except ValueError as error:
        raise BenchError(f"{path} is damaged ({error}): restore it.") from error


def published_rows(protocol: str) -> list[dict[str, Any]]:
    """Those of a suite's protocol, such as unlearncanvas@official, from all files."""
    return [row for path in sorted(PUBLISHED.glob("*.json")) for row in _read(path)["rows"] if row["protocol"] == protocol]
