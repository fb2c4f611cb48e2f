"""The file of tuned parameters that `python -m bench tune` writes and a suite reads."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.config import method_config
from bench.errors import BenchError
from bench.interfaces import UnlearningMethod
from bench.registry import method, short_name
from bench.suites.suite import Suite, Tuned
from bench.types import canonical_json, content_hash


def read(path: Path) -> dict[str, Any]:
    """Its tables [budget], [concepts] and [scores], {} if there is no file. BenchError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
        budget, concepts, scores = (dict(body[part]) for part in ("budget", "concepts", "scores"))
        if concepts.keys() != scores.keys() and not ("shared" in budget and concepts.keys() >= scores.keys()):
            raise ValueError("it has concepts without scores or scores without concepts")
        if any("tuned" not in row or "untuned" not in row for row in scores.values()):
            raise ValueError("a score is missing")
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path} is damaged ({error}): restore it, or pass --again to start it anew.") from error
    return {"budget": budget, "concepts": concepts, "scores": scores}


def check_same(kept: Mapping[str, Any], budget: Mapping[str, Any], path: Path) -> None:
    """BenchError if a file that was read was tuned with another budget than `budget`; how the command is spelled does not count."""
    known = kept.get("budget", budget)
    for key in (*budget, *known):
        if key != "command" and known.get(key) != budget.get(key):
            raise BenchError(
                f"{path} was tuned with {key} = {known.get(key)}, this command has {budget.get(key)}:"
                " pass --again to start it anew, or another --out."
            )


def inputs_digest(made: UnlearningMethod, suite: Suite) -> str:
    """Of the files that the method reads for the suite's concepts: parameters tuned with other SAEs, say, are other parameters."""
    own = [concept for concept in suite.concepts if concept.kind in made.card.supports]
    return content_hash({str(concept): dict(made.inputs(suite.assets, [concept])) for concept in own})


def configs(suite: Suite, name: str, given: Mapping[str, Any], tuned: Tuned | None) -> tuple[BaseModel, dict[str, BaseModel]]:
    """A method's configuration here, and those of the concepts that it was tuned for; what is `given` wins over both.

    BenchError for a parameter that is wrong or a tuning of another time.
    """
    kind, usual = method(name), suite.method_settings.get(short_name(name), {})
    if tuned and "published" not in tuned.budget:
        _check_fresh(suite, kind(method_config(name, kind.Config, usual)), name, tuned)
    layers: dict[str, Mapping[str, Any]] = {"": {}, **(tuned.concepts if tuned else {})}
    found: dict[str, BaseModel] = {key: method_config(name, kind.Config, {**usual, **own, **given}) for key, own in layers.items()}
    return found.pop(""), found


def _check_fresh(suite: Suite, untuned: UnlearningMethod, name: str, tuned: Tuned) -> None:
    """Tuned values are differences to a configuration: to another one they would mean something else."""
    now = {"method_version": untuned.version, "untuned": _known(untuned.config, tuned), "inputs": inputs_digest(untuned, suite)}
    names = {"method_version": "another version of it", "untuned": "other defaults", "inputs": "other files that it reads, such as SAEs"}
    other = [names[key] for key, value in now.items() if tuned.budget.get(key) != value]
    if other:
        raise BenchError(
            f"The tuned parameters of {name} are of {' and '.join(other)}: tune it again"
            f" (python -m bench tune {name} --again) or run it with --tuning untuned."
        )


def _known(config: BaseModel, tuned: Tuned) -> str:
    """As JSON without parameters that there were not yet at the tuning and that have their defaults: else the version would be another."""
    then = json.loads(tuned.budget.get("untuned", "{}"))
    later = config.model_dump(mode="json").keys() - then.keys() - config.model_fields_set
    return canonical_json(config.model_dump(mode="json", exclude=later))


def toml(body: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML of tables that hold either texts, numbers, true, false and lists of them, or tables of these with any name.

    BenchError for a value that TOML has not, such as None.
    """
    lines = []
    for name, table in body.items():
        nested = {f"{name}.{_value(key)}": value for key, value in table.items() if isinstance(value, Mapping)}
        for header, values in (nested or {name: table}).items():
            lines += [f"[{header}]", *(f"{key} = {_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes as JSON does, and DEL too
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    raise BenchError(f"{value!r} cannot be written as TOML: use texts, numbers, true or false.")
