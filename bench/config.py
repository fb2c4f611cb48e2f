"""What the user asked for, checked and resolved. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import BenchError, unknown
from bench.registry import FILE
from bench.suites.suite import Suite
from bench.types import Concept, Target

Images = Literal["none", "sample", "all"]
IMAGES: tuple[Images, ...] = get_args(Images)
"""From least to most."""
Tuning = Literal["both", "shared", "tuned", "untuned"]
"""Rows with and without tuning, per concept where that was done; the same with what concepts of a kind share; one of them."""
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
CompileChoice = Literal["auto", "yes", "no"]
Resume = Literal["missing", "never", "always", "only-cache"]
"""What to do in a folder that holds a run: what is missing; stop; everything again; nothing but tables of what is there."""
EngineName = Literal["local", "ray"]
BudgetName = Literal["quick", "full"]
T = TypeVar("T")
DEFAULT_METHODS = "none,saeuron,saeuron-detect"


class RunConfig(BaseModel):
    """The resolved settings of a run, kept in its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    preset: str
    methods: tuple[str, ...]
    settings: dict[str, dict[str, Any]] = Field(description="Parameters a method was given, by its name in tables.")
    targets: tuple[str, ...]
    seeds: int = Field(ge=1, le=10_000)
    steps: int = Field(ge=1, le=1_000)
    batch_size: int | None = Field(None, ge=2, le=4_096, description="Pictures with two conditions in one UNet call; None: as many as pay.")
    images: Images = "sample"
    tuning: Tuning = Field("both", description="Rows of methods that the suite has tuned values for.")
    tuned: dict[str, Path] = Field({}, description="Files of tuned values of one's own, by a method's name in tables.")
    scheduler: str = Field("ddim", description="Of another one, pictures are of another protocol.")
    fit_seed: int = 0
    examine: tuple[str, ...] = Field((), description="What else is found out about each picture (`bench.examiners`).")
    attacks: tuple[str, ...] = Field((), description="What erased models are attacked with.")
    attack_budget: BudgetName = "quick"
    sequential: tuple[str, ...] = Field((), description="Concepts that are removed one after the other; targets are the sets so far.")


class Shard(NamedTuple):
    """The `number`-th `of` so many processes that share a run's folder."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`"2/8"`; BenchError for what is none."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise BenchError(f'--shard "{text}" is not of the form i/n with i from 1 to n, such as 2/8.')
        return cls(int(match[1]), int(match[2]))

    def own(self, things: Sequence[T]) -> Sequence[T]:
        """An even share of neighbours: what needs the same weights stays together."""
        return things[len(things) * (self.number - 1) // self.of : len(things) * self.number // self.of]


WHOLE = Shard()


SHORT = {"checkpoint": "path"}
"""Methods whose first parameter, a file, may be given without its name: `checkpoint:PATH` is `checkpoint:path=PATH`."""


def parse_variant(text: str) -> tuple[str, dict[str, str]]:
    """`"saeuron:error=none:features=4"` → `("saeuron", {"error": "none", "features": "4"})`; `"my.py:Mine:a=b"` → `("my.py:Mine", …)`."""
    file = FILE.match(text)
    name = file[0] if file else text.partition(":")[0]
    rest = text[len(name) :].split(":")[1:]
    if name in SHORT and rest and not re.match(r"\w+=", rest[0]):
        rest[0] = f"{SHORT[name]}={rest[0]}"
    pairs = [entry.partition("=") for entry in rest]
    if not all(key and equals for key, equals, _ in pairs):
        raise BenchError(f'"{text}" in --methods is not of the form method:param=value, such as saeuron:error=none.')
    return name, {key: value for key, _, value in pairs}


def labelled(name: str, given: Mapping[str, Any], whole_paths: bool = False) -> str:
    """What tables call a variant: `saeuron:error=none`, `checkpoint:esd.pt`."""
    own = dict(given)
    file = own.pop(SHORT.get(name, ""), None)
    head = [name] if file is None else [name, str(file) if whole_paths else PurePath(file).name]
    return ":".join([*head, *(f"{key}={value}" for key, value in sorted(own.items()))])


def whole_path(text: str) -> str:
    """A method, if it is in a file, by the file's whole path, as other processes may work elsewhere."""
    file = FILE.match(text)
    return f"{Path(file['path']).expanduser().absolute()}{text[file.end('path') :]}" if file else text


def parse_tuned(entries: Iterable[str], methods: Sequence[str]) -> dict[str, Path]:
    """`["Mine=tuned.toml"]` → `{"Mine": …/tuned.toml}`, whole paths; the method must be one that runs (of one in a file, the class)."""
    found = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals:
            raise BenchError(f'--tuned "{entry}" is not of the form METHOD=FILE, such as MyMethod=tuned.toml.')
        if name not in methods:
            raise unknown("method in --tuned", name, methods)
        found[name] = Path(text).expanduser().absolute()
        if not found[name].is_file():
            raise BenchError(f"--tuned {entry}: there is no such file; `python -m bench tune` writes one.")
    return found


def parse_settings(entries: Iterable[str], methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["uce.tokens=last"]` → `{"uce": {"tokens": "last"}}`; the method must be one that runs (of one in a file, the class)."""
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        match = re.fullmatch(r"([\w-]+)\.(\w+)=(.*)", entry)
        if match is None:
            raise BenchError(f'--set "{entry}" is not of the form method.param=value, such as uce.tokens=last.')
        name, parameter, value = match.groups()
        if name not in methods:
            raise unknown("method in --set", name, methods)
        found.setdefault(name, {})[parameter] = value
    return found


def method_config(method: str, kind: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    """The method's configuration, or one sentence on the first thing that is wrong with the values."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # what no parameter is wrong about by itself
            raise BenchError(f"{method}: {first['msg'].removeprefix('Value error, ')} (python -m bench show {method}).") from error
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise unknown(f"parameter of {method}", name, kind.model_fields) from error
        raise BenchError(f'{method}.{name} = "{first["input"]}": {first["msg"].lower()} (python -m bench show {method}).') from error


_GROUPS = {"styles": "style:", "objects": "object:", "all": ""}


def parse_targets(text: str, suite: Suite) -> tuple[Target, ...]:
    """`neon,objects,neon+house` → targets: names, `styles`, `objects`, `all`, and `a+b` for several at once."""
    found: dict[str, Target] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        names = word.split("+")
        if word in _GROUPS:
            targets = [Target((concept,)) for concept in suite.concepts if str(concept).startswith(_GROUPS[word])]
        elif "" in names or _GROUPS.keys() & set(names):
            raise BenchError(f'"{word}" in --concepts is not understood: join concepts, such as {suite.styles[0]}+{suite.objects[0]}.')
        else:
            targets = [Target.of(_concept(name, suite) for name in names)]
        found.update((str(target), target) for target in targets)
    if not found:
        raise BenchError("--concepts names no concept: give names, styles, objects or all.")
    return tuple(found.values())


def parse_sequence(text: str, suite: Suite) -> tuple[tuple[str, ...], tuple[Target, ...]]:
    """`neon,fish` → concepts in their order, and what is removed after each: neon, then neon and fish."""
    found = parse_targets(text, suite)
    joint = [str(target) for target in found if len(target.concepts) > 1]
    if joint or len(found) < 2:
        what = f'"{joint[0]}" is more than one concept at once' if joint else "it names one concept"
        raise BenchError(f"--sequential removes two concepts or more, one after the other, but {what}: give names with commas.")
    concepts = [target.concepts[0] for target in found]
    return tuple(map(str, concepts)), tuple(Target.of(concepts[: k + 1]) for k in range(len(concepts)))


def _concept(name: str, suite: Suite) -> Concept:
    known = {str(concept): concept for concept in suite.concepts}
    short: dict[str, list[Concept]] = {}
    for concept in suite.concepts:
        short.setdefault(concept.name, []).append(concept)
    if name in known:
        return known[name]
    matches = short.get(name, [])
    if len(matches) > 1:
        raise BenchError(f'"{name}" is a style and an object: write style:{name} or object:{name}.')
    if not matches:
        raise unknown("concept", name, short)
    return matches[0]
