"""Find methods and suites by name, without importing them until they are used.

A file `methods/<name>.py` is a method, a module in `bench/suites/` a suite; installed packages add methods through the
entry-point group `bench.methods`, and `path/to/file.py:Class` is a method that nobody has to install. Summaries are read
from the source text, so that listing needs no torch. A plug-in that is broken is named and hurts no other.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bench.errors import BenchError, told, unknown
from bench.files import sha256_text

CLASSIFIERS = {
    "two-head": "classifiers.two_head:load", "unlearncanvas": "classifiers.unlearncanvas:load",
    "clip-zero-shot": "classifiers.clip:load_zero_shot", "inception-torchvision": "classifiers.inception_torchvision:load",
    "inception-clean-fid": "classifiers.inception_clean_fid:load", "clip-score": "classifiers.clip:load_score",
    "qwen2-vl": "classifiers.qwen2_vl:load",
}  # fmt: skip
"""Name → what loads it, given a folder or file and a device."""
SUITES = {"minicanvas": "bench.suites.minicanvas", "unlearncanvas": "bench.suites.unlearncanvas"}
ATTACKS = {
    "unlearndiffatk": "bench.attacks.unlearndiffatk:UnlearnDiffAtk", "null-control": "bench.attacks.unlearndiffatk:Null",
    "p4d-n": "bench.attacks.p4d:P4DN", "p4d-k": "bench.attacks.p4d:P4DK", "cce": "bench.attacks.cce:CCE",
    "ring-a-bell": "bench.attacks.ring_a_bell:RingABell", "mma": "bench.attacks.mma:MMA", "random": "bench.attacks.simple:Random",
    "seed-search": "bench.attacks.simple:SeedSearch", "paraphrase": "bench.attacks.simple:Paraphrase",
    "replay": "bench.attacks.replay:Replay",
}  # fmt: skip
ATTACK_SETS = {"prompts-v1": ("unlearndiffatk", "p4d-n", "p4d-k", "ring-a-bell", "mma", "random")}
"""Fixed sets of attacks that robustness is told under: a goal survives if it survives each of them. All are of prompts that can be
typed, and keep the noise, and every suite has all of them."""


def load_object(address: str) -> Any:
    """The object at "module:name"; BenchError if there is none."""
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BenchError(f"{address} cannot be loaded ({error}): reinstall the package that provides it.") from error


FILE = re.compile(r"(?P<path>[^=:]+\.py):(?P<name>\w+)(?=:|$)")
"""A method in a file: "path/to/file.py:Class", with or without parameters behind."""


def file_module(path: Path) -> ModuleType:
    """The module of a Python file that is in no package; edited, it is another one. Raises whatever the file raises."""
    source = path.read_text(encoding="utf-8")
    # By content, not by place: where a file lies changes no result.
    name = f"file_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{sha256_text(source)[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses and pickle look for it there
        try:
            exec(compile(source, str(path), "exec"), vars(module))  # importlib would leave bytecode beside the file, and trust it later
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


class _Found(NamedTuple):
    """All methods that have a name of their own, and what is wrong with the others."""

    usable: dict[str, str]
    """Name → module."""
    refused: dict[str, str]
    """Name → one sentence."""


def _find() -> _Found:
    package = importlib.util.find_spec("methods")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.py")) if not file.name.startswith("_")]
    found = _Found({file.stem.replace("_", "-"): f"methods.{file.stem}" for file in files}, {})
    entries: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group="bench.methods"):
        entries.setdefault(entry.name, {})[entry.value] = entry
    for name, own in entries.items():
        rivals = " and ".join([*([found.usable[name]] if name in found.usable else []), *map(_origin, own.values())])
        if not re.fullmatch(r"[\w-]+", name):
            found.refused[name] = f'The name "{name}" of the method {rivals} has more than letters, digits, - and _: rename it there.'
        elif name in found.usable:
            found.refused[name] = f'"{name}" is {rivals}; the first is used: rename or uninstall the other.'
        elif len(own) > 1:
            found.refused[name] = f'"{name}" is {rivals}; none is used: uninstall one of them.'
        else:
            found.usable[name] = next(iter(own))
    return found


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value} of the package {entry.dist.name}" if entry.dist else entry.value


def methods() -> dict[str, str]:
    """Name → module of every method; "_" in a file name is "-" in the method's name."""
    return _find().usable


def refused() -> list[str]:
    """A sentence on every plug-in that is left out, as its name is another's."""
    return list(_find().refused.values())


def short_name(name: str) -> str:
    """What a method is called in tables: of one in a file, the class."""
    return name.rpartition(":")[2]


def is_ours(name: str) -> bool:
    """Whether a method is one of this project's, not a plug-in. Imports nothing."""
    return methods().get(name, "").startswith("methods.")


def require(name: str) -> None:
    """BenchError if there is no such method. Imports nothing."""
    file, known = FILE.fullmatch(name), methods()
    if name.endswith(".py"):
        raise BenchError(f"{name} names no class: write {name}:MyMethod.")
    if file is not None:
        _require_class(name, Path(file["path"]), file["name"])
    elif name not in known:
        refused = _find().refused
        raise BenchError(refused[name]) if name in refused else unknown("method", name, known)


def _require_class(name: str, path: Path, own: str) -> None:
    if not path.is_file():
        raise BenchError(f'The method "{name}" cannot be loaded: there is no file {path}.')
    try:
        body = ast.parse(path.read_text(encoding="utf-8"), path.name).body
    except (OSError, ValueError, SyntaxError) as error:
        raise _broken(name, error) from error
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    if own not in classes:
        raise unknown(f"class of {path}", own, _methods_first([node for node in body if isinstance(node, ast.ClassDef)]))
    if own in methods():
        raise BenchError(f'{name}: there is a method "{own}" already, rename the class.')


def _methods_first(classes: list[ast.ClassDef]) -> list[str]:
    """Names of those that have a `fit`; of all, if none has."""
    fitting = [node.name for node in classes if any(isinstance(own, ast.FunctionDef) and own.name == "fit" for own in node.body)]
    return fitting or [node.name for node in classes]


def address(name: str) -> str:
    """Where a method's class is, "module:attribute". BenchError if there is none or its file cannot be loaded."""
    require(name)
    file = FILE.fullmatch(name)
    if file is None:
        found = methods()[name]
        return found if ":" in found else f"{found}:METHOD"
    try:
        return f"{file_module(Path(file['path'])).__name__}:{file['name']}"
    except (Exception, SystemExit) as error:  # it is the user's own code
        raise _broken(name, error) from error


def method(name: str) -> Any:
    """The `UnlearningMethod` class of this name, or of "path/to/file.py:Class". BenchError names it if it is broken."""
    module, _, attribute = address(name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a plug-in's own code
        raise _broken(name, error) from error
    if not (isinstance(found, type) and any(base.__name__ == "UnlearningMethod" for base in found.__mro__)):
        raise BenchError(f'The method "{name}" is {found!r}, which is no subclass of UnlearningMethod: name its class.')
    lacking = [*sorted(getattr(found, "__abstractmethods__", ())), *([] if hasattr(found, "card") else ["card"])]
    if lacking:
        raise BenchError(f'The method "{name}" has no {" and no ".join(lacking)}: define what is missing (docs/add-a-method.md).')
    return found


def _broken(name: str, error: BaseException) -> BenchError:
    origins = [_origin(entry) for entry in entry_points(group="bench.methods") if entry.name == name]
    where, mend = (f" ({origins[0]})", "mend or uninstall it") if origins else ("", "mend it")
    return BenchError(f'The method "{name}"{where} cannot be loaded, {told(error)}: {mend}.')


def method_summary(name: str) -> str:
    """First line of what its module says of itself, read without importing it. BenchError names it if it is broken."""
    module, _, attribute = methods()[name].partition(":")
    try:
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise ModuleNotFoundError(f"there is no module {module}")
        tree = _parsed(spec.origin)
        if tree is not None and attribute and not _binds(tree, attribute):
            raise AttributeError(f"the module {module} has no {attribute}")
        return _first_line(tree)
    except Exception as error:  # to find a module its package is imported
        raise _broken(name, error) from error


def require_attack(name: str) -> None:
    """BenchError if there is no such attack. Imports nothing."""
    if name in ATTACK_SETS:
        raise BenchError(f"{name} is a set and takes no parameters: name its attacks yourself ({', '.join(ATTACK_SETS[name])}).")
    if name not in ATTACKS:
        raise unknown("attack", name, [*ATTACKS, *ATTACK_SETS])


def attack(name: str) -> Any:
    """The `Attack` class of a name. BenchError if there is none."""
    require_attack(name)
    return load_object(ATTACKS[name])


def summary(module: str) -> str:
    """First line of a module's docstring, read without importing it; empty if the source cannot be found."""
    try:
        spec = importlib.util.find_spec(module.partition(":")[0])
    except ImportError:
        return ""
    return _first_line(_parsed(spec.origin)) if spec else ""


def class_summary(address: str) -> str:
    """First line of the docstring of a class "module:name", or of its module where the class has none; read without importing it."""
    module, _, name = address.partition(":")
    spec = importlib.util.find_spec(module)
    tree = _parsed(spec.origin) if spec else None
    kind = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None) if tree else None
    return _first_line(kind) or _first_line(tree)


def _parsed(origin: str | None) -> ast.Module | None:
    """The source of a module; None where it has none."""
    return ast.parse(Path(origin).read_text(encoding="utf-8")) if origin and origin.endswith(".py") else None


def _first_line(node: ast.Module | ast.ClassDef | None) -> str:
    return ((ast.get_docstring(node) if node else None) or "").partition("\n")[0]


def _binds(tree: ast.Module, name: str) -> bool:
    """Whether a module's text defines, assigns or imports this name; `import *` may."""
    nodes = list(ast.walk(tree))
    bound = {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ClassDef)} | {node.id for node in nodes if isinstance(node, ast.Name)}
    return not bound.isdisjoint((name, "*"))


def suite(text: str) -> Any:
    """The `Suite` of "name", "name@profile" or "path/to/suite.toml"."""
    if text.endswith(".toml"):
        return load_object("bench.suites.from_file:load_suite")(Path(text).absolute())
    name, at, profile = text.partition("@")
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    profiles = load_object(f"{SUITES[name]}:PROFILES")
    if at and profile not in profiles:
        raise unknown(f"profile of {name}", profile, profiles)
    return profiles[profile] if at else next(one for one in profiles.values() if one.default)
