"""Pictures that somebody has already, as UnlearnCanvas' scripts leave them, scored into records and tables like those of a run.

A folder holds `{Style}_{Object}_seed{S}.jpg` (or .png) of one erasure, or a folder of these for each target, named by its
concept. What the protocol asks for and is not there is counted and named, never skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.codec import decode, encode, in_threads
from bench.distances import distances_of, reference_sets
from bench.errors import BenchError
from bench.plan import BASE, REQUESTS_PER_BUNDLE
from bench.records import BROKEN, COLUMNS, plain
from bench.scoring import FEATURES, Scorer, Verdict
from bench.store import Store
from bench.suites.suite import Preset, Suite
from bench.types import KINDS, Card, GenerationRequest, Record, Target, content_hash

_NAME = re.compile(r"(?P<cell>.+)_seed(?P<seed>\d+)")
_SUFFIXES = (".jpg", ".jpeg", ".png")
PLAN = "external"
"""The plan of such records: there was none here."""


@dataclass(frozen=True)
class Found:
    """The pictures of one target (None: of the unedited model) that a protocol asks for."""

    target: Target | None
    files: Mapping[str, Path]
    """By the id of the request."""
    requests: tuple[GenerationRequest, ...]
    """All that are asked for."""
    others: int
    """Files that no request asks for."""

    @property
    def missing(self) -> list[str]:
        """What is asked for and not there, as the file would be called."""
        return [file_name(request) for request in self.requests if request.id not in self.files]


def strangers(suite: Suite, folder: Path) -> tuple[list[str], int]:
    """Folders that no concept names, and how many concepts of the kinds that others name have none."""
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    named = [concept for concept in suite.concepts if concept.name in there]
    kinds = {concept.kind for concept in named}
    wanted = {concept.name for concept in suite.concepts if concept.kind in kinds}
    return sorted(there - {concept.name for concept in named}), len(wanted - there)


def file_name(request: GenerationRequest) -> str:
    """As the public scripts call it: `Van_Gogh_Cats_seed188.jpg`, without a style `Cats_seed188.jpg`."""
    return f"{request.style}_{request.object}_seed{request.seed}.jpg".removeprefix("_")


def scan(suite: Suite, preset: Preset, folder: Path, target: Target | None, none: bool) -> list[Found]:
    """What there is in a folder, by target. BenchError where nothing is asked for, or it is not clear of which target it is."""
    if not folder.is_dir():
        raise BenchError(f"{folder} is no folder: give one with pictures.")
    if none:
        base = suite.base_requests([Target((concept,)) for concept in suite.concepts], preset)
        found = [_found(folder, None, base)]
    elif target is not None:
        found = [_found(folder, target, suite.requests(target, preset))]
    else:
        own = {concept.name: Target((concept,)) for concept in suite.concepts if (folder / concept.name).is_dir()}
        found = [_found(folder / name, one, suite.requests(one, preset)) for name, one in own.items()]
        if not found:
            raise BenchError(f"{folder} has no folder that is named by a concept: say of which one its pictures are (--target CONCEPT).")
    for one in found:
        if not one.files:
            raise BenchError(f"{folder} has none of the {len(one.requests)} pictures of {one.target or BASE}, such as {one.missing[0]}.")
    return found


def _found(folder: Path, target: Target | None, requests: Sequence[GenerationRequest]) -> Found:
    asked = {(request.style, request.object, request.seed): request.id for request in requests}
    objects = {request.object for request in requests}
    files: dict[str, Path] = {}
    others = 0
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        cell = _cell(path.stem, objects)
        if cell in asked and asked[cell] not in files:
            files[asked[cell]] = path
        else:
            others += 1
    return Found(target, files, tuple(requests), others)


def _cell(stem: str, objects: set[str]) -> tuple[str, str, int] | None:
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    style, _, obj = match["cell"].rpartition("_")
    return (style, obj, int(match["seed"])) if obj in objects else None


def score(found: Sequence[Found], method: str, scorer: Scorer, store: Store, advance: Callable[[int], None]) -> dict[str, pd.DataFrame]:
    """Outcomes by target, "" for the unedited model; pictures that are missing have no verdict.

    Every 64 pictures are stored; a command that is given again reads pictures but judges only those that are new.
    """
    scored = {}
    for one in found:
        frames = []
        for start in range(0, len(one.requests), REQUESTS_PER_BUNDLE):
            requests = one.requests[start : start + REQUESTS_PER_BUNDLE]
            frames.append(_chunk(requests, one.files, method, str(one.target or ""), scorer, store))
            advance(len(requests))
        scored[str(one.target or "")] = pd.concat(frames, ignore_index=True)
    return scored


def _chunk(
    requests: Sequence[GenerationRequest], files: Mapping[str, Path], method: str, target: str, scorer: Scorer, store: Store
) -> pd.DataFrame:
    data = in_threads(lambda request: _read(files.get(request.id)), requests)
    digests = [hashlib.sha256(own).hexdigest() if own else "" for own in data]
    unit = content_hash([PLAN, method, target, [request.id for request in requests], digests, scorer.digests, scorer.codec])
    known = store.read_unit(unit)
    if known is not None:
        return known
    verdicts: list[Verdict | None] = [None] * len(requests)
    for places, pixels in _by_size(data, [files.get(request.id) for request in requests], scorer).items():
        prompts = [requests[place].prompt for place in places]
        for place, verdict in zip(places, scorer.judge_files(torch.from_numpy(pixels), [None] * len(places), prompts), strict=True):
            verdicts[place] = verdict
    frame = scorer.outcomes(requests, verdicts, [False] * len(requests))
    store.write_unit(unit, frame, PLAN, "none")
    return frame


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}).") from error


def _by_size(data: Sequence[bytes | None], paths: Sequence[Path | None], scorer: Scorer) -> dict[tuple[int, ...], np.ndarray[Any, Any]]:
    """Pictures of one size together: their places → uint8 [n, H, W, 3], as the suite's codec leaves them."""
    groups: dict[tuple[int, ...], list[tuple[int, np.ndarray[Any, Any]]]] = {}
    for place, own in enumerate(data):
        if own is not None:
            try:
                pixels = decode(own)
            except OSError as error:
                raise BenchError(f"{paths[place]} is no picture: make it again, or remove it to have it counted as missing.") from error
            if scorer.codec == "jpeg" and not own.startswith(b"\xff\xd8"):
                pixels = decode(encode(pixels, "jpeg"))
            groups.setdefault(pixels.shape, []).append((place, pixels))
    return {tuple(place for place, _ in group): np.stack([pixels for _, pixels in group]) for group in groups.values()}


def record_of(
    suite: Suite, preset: Preset, protocol: str, method: str, found: Sequence[Found], scored: Mapping[str, pd.DataFrame], scorer: Scorer
) -> Record:
    """The record of pictures that were sampled elsewhere; what is not known of them is null."""
    targets = [one.target for one in found if one.target] or [Target((concept,)) for concept in suite.concepts]
    reference = reference_sets(suite, scorer.networks)
    distances = {
        key: value for name, frame in scored.items() for key, value in distances_of(suite, preset, targets, frame, reference, name).items()
    }
    outcomes = pd.concat(
        [frame[[name for name in frame if not name.startswith(FEATURES)]].assign(target=name, first_edit=None)
         for name, frame in scored.items()], ignore_index=True,
    )  # fmt: skip
    outcomes["far"] = outcomes.get(BROKEN)
    columns = [*COLUMNS, *(one.column for one in scorer.examiners if one.column != BROKEN)]
    missing = sum(len(one.missing) for one in found)
    return Record(
        method=method, label=method, version=0, config={}, card=Card(f"{method}, sampled elsewhere", "", "", KINDS, method == BASE),
        protocol=protocol, numerics={"sampled": "elsewhere"}, outcomes={name: plain(outcomes[name]) for name in columns},
        distances=distances,
        provenance={
            "plan": PLAN, "external": True, "judges": scorer.digests, "missing_pictures": missing,
            "pictures": content_hash({name: plain(frame["sha256"]) for name, frame in scored.items()}),
        },
    )  # fmt: skip


def merged(before: Record, now: Record) -> Record:
    """The targets of both records of a method; those of `now` take the place of the same ones before."""
    new = set(now.outcomes["target"])
    keep = [i for i, target in enumerate(before.outcomes["target"]) if target not in new]
    if not keep:
        return now
    columns = {
        name: [*(before.outcomes.get(name, [None] * (max(keep) + 1))[i] for i in keep), *now.outcomes[name]] for name in now.outcomes
    }
    missing = sum(value is None for value in columns["style_pred"])
    provenance = {
        **now.provenance,
        "missing_pictures": missing,
        "pictures": content_hash([before.provenance["pictures"], now.provenance["pictures"]]),
    }
    return replace(now, outcomes=columns, distances={**before.distances, **now.distances}, provenance=provenance)
