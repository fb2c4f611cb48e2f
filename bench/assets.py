"""Published files that a suite needs and that do not ship with it: what they are, where they lie, whether they are whole.

They are looked for below one folder (`--assets`, else the variable BENCH_ASSETS, else ~/.cache/unlearnbench), in
`<suite>/<place>`, or where `--asset NAME=PATH` says. On first use the digest of every file is written into
`assets.lock.json` there; a file that has changed since is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError, CannotWriteError, unknown
from bench.files import sha256_file, sha256_text, write_atomic

FOLDER_VARIABLE, FILES_VARIABLE = "BENCH_ASSETS", "BENCH_ASSET_FILES"
LOCK = "assets.lock.json"
EVERY_RUN = "every run"
"""What an asset is needed for that no run of its suite can do without."""
_USUAL = Path.home() / ".cache" / "unlearnbench"
DEPTH = 4
"""How far below its place the files of an asset may lie: archives and Drive folders bring folders of their own."""


@dataclass(frozen=True)
class Source:
    """Where a file is published: a Hugging Face repository, a Google Drive folder or an address; exactly one of them."""

    hub: str = ""
    """Such as "bcywinski/SAeUron"; "datasets/…" for a dataset."""
    drive: str = ""
    """Id of a folder."""
    url: str = ""
    patterns: tuple[str, ...] = ()
    """Of a repository only these files."""

    def __str__(self) -> str:
        return self.url or (f"https://huggingface.co/{self.hub}" if self.hub else f"https://drive.google.com/drive/folders/{self.drive}")


@dataclass(frozen=True)
class Asset:
    """Something that is published as a file or a folder."""

    suite: str
    name: str
    what: str
    source: Source
    licence: str
    size: str
    """As published or computed, for people."""
    place: str
    """Below the suite's folder of assets: its folder, or the file itself."""
    parts: tuple[str, ...] = ()
    """Patterns relative to its folder of which each must match something; none for a file."""
    needed_for: str = EVERY_RUN
    sha256: str = ""
    """Of an asset that is one file, where it is published: all 64 digits, or as many first ones as the file's name tells."""
    usual: bool = False
    """Whether `assets fetch` without names brings it too, beside what every run needs."""
    many: bool = False
    """So many files that names and sizes stand for their contents."""

    @property
    def key(self) -> str:
        """Its name in the lock file."""
        return f"{self.suite}/{self.name}"


def use(folder: Path | None, files: Mapping[str, Path]) -> None:
    """Look there from now on, in processes that this one starts too."""
    if folder is not None:
        os.environ[FOLDER_VARIABLE] = str(folder.absolute())
    if files:
        os.environ[FILES_VARIABLE] = json.dumps({**_given(), **{name: str(path.absolute()) for name, path in files.items()}})


def _given() -> dict[str, str]:
    """Files elsewhere, by name."""
    try:
        return dict(json.loads(os.environ.get(FILES_VARIABLE) or "{}"))
    except ValueError as error:
        raise BenchError(f"The variable {FILES_VARIABLE} is no JSON object of names and paths ({error}): unset it.") from error


def cache(suite: str) -> Path:
    """Where what was made from a suite's files is kept: beside them or, where they cannot be written, in the usual folder."""
    place = folder() / suite
    there = next(path for path in (place, *place.parents) if path.exists())
    return place if os.access(there, os.W_OK) else _USUAL / suite


def environment() -> dict[str, str]:
    """The variables that say where assets are, for processes elsewhere."""
    return {name: os.environ[name] for name in (FOLDER_VARIABLE, FILES_VARIABLE) if name in os.environ}


def folder() -> Path:
    """Where assets lie."""
    return Path(os.environ.get(FOLDER_VARIABLE) or _USUAL)


def parse_files(entries: list[str], known: Mapping[str, Asset]) -> dict[str, Path]:
    """`["model=/data/style50"]` → {"model": …}. BenchError for a name that no suite has or a path that does not exist."""
    found = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not path:
            raise BenchError(f'--asset "{entry}" is not of the form NAME=PATH, such as model=/data/style50.')
        if name not in known:
            raise unknown("asset", name, known)
        if not Path(path).exists():
            raise BenchError(f"--asset {name}={path}: there is no such file or folder.")
        found[name] = Path(path)
    return found


def place_of(asset: Asset) -> Path:
    """Where an asset is to be, whether or not it is there."""
    given = _given()
    return Path(given[asset.name]) if asset.name in given else folder() / asset.suite / asset.place


def begun(asset: Asset) -> Path:
    """A file that is there while the asset is being fetched: until then what there is of it is not whole."""
    return folder() / asset.suite / f".fetching-{asset.name}"


def find(asset: Asset) -> Path | None:
    """The file, or the folder with all of its parts at its place or a little below; None if it is not whole."""
    place = place_of(asset)
    if asset.name not in _given() and begun(asset).exists():
        return None
    if not asset.parts or place.is_file():
        return place if place.is_file() else None
    level = [place] if place.is_dir() else []
    for _ in range(DEPTH):
        whole = [path for path in level if all(any(path.glob(pattern)) for pattern in asset.parts)]
        if len(whole) > 1:
            raise BenchError(f"{asset.key} is twice below {place} ({whole[0]}, {whole[1]}): name one (--asset {asset.name}=PATH).")
        if whole:
            return whole[0]
        level = [child for path in level for child in sorted(path.iterdir()) if child.is_dir()]
    return None


def locate(asset: Asset) -> Path:
    """Where a whole asset is, its files as they were at first use. BenchError says what is missing and how to get it."""
    found = find(asset)
    if found is None:
        lacking = f" (with {', '.join(asset.parts)})" if asset.parts and place_of(asset).exists() else ""
        lacking = f", whose download did not end (until then {begun(asset).name} is there)" if begun(asset).exists() else lacking
        raise BenchError(f"{asset.what[0].upper()}{asset.what[1:]} is missing: {place_of(asset)}{lacking}. {how_to_get(asset)}")
    check(asset, found)
    return found


def locate_if_here(asset: Asset) -> Path | None:
    """Where a whole asset is, its files as they were at first use; None if it is not here."""
    return None if find(asset) is None else locate(asset)


def require(assets: Iterable[Asset]) -> None:
    """BenchError that names all that are missing."""
    missing = [asset for asset in assets if find(asset) is None]
    if len(missing) == 1:
        locate(missing[0])
    if missing:
        names = " ".join(asset.name for asset in missing)
        what = "; ".join(f"{asset.name}, {asset.what} ({asset.size})" for asset in missing)
        raise BenchError(
            f"Published files are missing below {folder()}: {what}. Get them with `python -m bench assets fetch --suite"
            f" {missing[0].suite} {names}`, or say where they are with --asset NAME=PATH."
        )


def how_to_get(asset: Asset) -> str:
    """A sentence."""
    command = f"python -m bench assets fetch --suite {asset.suite} {asset.name}"
    return f"Get it with `{command}` (from {asset.source}, {asset.size}), or give --asset {asset.name}=PATH."


def check(asset: Asset, found: Path, again: bool = False, accept: bool = False) -> dict[str, str]:
    """Hold an asset's files against the lock, writing down what it does not know; the digests by name.

    Files whose size and time are as written down are not read, unless `again`. BenchError for one that has changed, unless
    that is to be `accept`ed, and for one that is not the published one.
    """
    lock = _read_lock()
    key = asset.key if place_of(asset).is_relative_to(folder()) else f"{asset.key} at {found}"
    kept: Mapping[str, Any] = {} if accept else lock.get(key, {})
    now = dict(_files(asset, found))
    entries = {name: _entry(asset, path, kept.get(name), again) for name, path in now.items()}
    for name, entry in entries.items():
        known = kept.get(name, entry)["sha256"]
        if not entry["sha256"].startswith(asset.sha256):
            raise BenchError(f"{now[name]} is not the published file (SHA-256 {entry['sha256']}, not {asset.sha256}): fetch it again.")
        if entry["sha256"] != known:
            raise BenchError(
                f"{now[name]} has changed since it was first used (SHA-256 {entry['sha256'][:16]}…, was {known[:16]}…): restore it, or"
                f" accept it with `python -m bench assets verify --suite {asset.suite} {asset.name} --accept`."
            )
    gone = sorted(kept.keys() - entries.keys())
    if gone:
        raise BenchError(
            f"{found} has no longer {gone[0]}, which it had when it was first used: restore it, or accept it as it is with"
            f" `python -m bench assets verify --suite {asset.suite} {asset.name} --accept`."
        )
    if entries != kept:
        with suppress(CannotWriteError):  # a folder that others share may be theirs to write
            write_atomic(folder() / LOCK, (json.dumps({**lock, key: entries}, indent=1, sort_keys=True) + "\n").encode())
    return {name: str(entry["sha256"]) for name, entry in entries.items()}


def forget(asset: Asset) -> None:
    """Remove what was fetched of an asset, and what the lock says of it. BenchError for files that lie elsewhere: they are not ours."""
    place = place_of(asset)
    if not place.is_relative_to(folder()):
        raise BenchError(f"{asset.key} is at {place}, not below {folder()}: replace it yourself.")
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    rest = {key: value for key, value in _read_lock().items() if key != asset.key}
    write_atomic(folder() / LOCK, (json.dumps(rest, indent=1, sort_keys=True) + "\n").encode())


def digests(asset: Asset) -> dict[str, str]:
    """SHA-256 as published (of some the first digits alone), or as written down at first use, by file; nothing is read."""
    known = {name: str(entry["sha256"]) for name, entry in _read_lock().get(asset.key, {}).items()}
    return known or ({asset.place: f"{asset.sha256} …" if len(asset.sha256) < 64 else asset.sha256} if asset.sha256 else {})


def digest_of(asset: Asset) -> str:
    """One digest of a whole asset, from the lock where its files are as they were."""
    return sha256_text(json.dumps(check(asset, locate(asset)), sort_keys=True))


def _files(asset: Asset, found: Path) -> Iterator[tuple[str, Path]]:
    """Files by name: the asset itself, all below a folder that a part matches, or the folder as a whole where they are many."""
    if found.is_file() or asset.many:
        yield found.name, found
        return
    for path in sorted({path for pattern in asset.parts for match in found.glob(pattern) for path in _below(match)}):
        yield str(path.relative_to(found)), path


def _below(path: Path) -> Iterator[Path]:
    yield from (child for child in path.rglob("*") if child.is_file()) if path.is_dir() else (path,)


def _entry(asset: Asset, path: Path, kept: Mapping[str, Any] | None, again: bool) -> dict[str, Any]:
    if path.is_dir():
        listing = sorted((str(file.relative_to(path)), file.stat().st_size) for file in path.rglob("*") if file.is_file())
        return {"sha256": sha256_text(json.dumps(listing))}
    stat = path.stat()
    stamp = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if kept and not again and {name: kept.get(name) for name in stamp} == stamp:
        return dict(kept)
    return {**stamp, "sha256": sha256_file(path)}


def _read_lock() -> dict[str, Any]:
    path = folder() / LOCK
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BenchError(f"{path} is damaged ({error}): restore it, or delete it to lock files as they are now.") from error
