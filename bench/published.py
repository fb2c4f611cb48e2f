"""Figures from papers: results/published/*.json in a checkout. Nothing in them was measured by this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.errors import BenchError

PUBLISHED = Path("results/published")


def read_published(folder: Path = PUBLISHED) -> dict[str, Any]:
    """`rows`, each with id, method, concepts, protocol, source and figures in per cent, and `tolerance_points`. BenchError without them."""
    path = folder / "unlearncanvas.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise BenchError(f"{path} is not here: give the command in a checkout, or --published with its folder.") from error
    except ValueError as error:
        raise BenchError(f"{path} is damaged ({error}): restore it.") from error


def published_rows(protocol: str) -> list[dict[str, Any]]:
    """Those of a suite's protocol, such as unlearncanvas@official; none outside a checkout."""
    return [row for row in read_published()["rows"] if row["protocol"] == protocol] if PUBLISHED.is_dir() else []
