"""Fetch published files with the libraries of the places that hold them; what was begun is continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.assets import Asset, begun, find, locate, place_of
from bench.errors import BenchError
from bench.files import write_atomic


def fetch(asset: Asset, say: Callable[[str], None]) -> Path:
    """Download what is not whole, and hold it against the lock. BenchError where the source does not answer."""
    if find(asset) is None:
        if asset.source.url and asset.parts:
            raise BenchError(f"{asset.key} is part of {asset.source}: clone it, and name the folder with --asset {asset.name}=PATH.")
        place = place_of(asset)
        write_atomic(begun(asset), b"")
        say(f"{asset.key}: {asset.size} from {asset.source} to {place}")
        try:
            _download(asset, place)
        except Exception as error:  # each library and its network stack raise their own kinds
            first = " ".join(str(error).split())[:200] or type(error).__name__
            raise BenchError(
                f"{asset.key} could not be downloaded from {asset.source} ({first}): give the command again to continue, or name the"
                f" files where you have them (--asset {asset.name}=PATH)."
            ) from error
        begun(asset).unlink()
    return locate(asset)


def _download(asset: Asset, place: Path) -> None:
    # Imported here, as only this needs them and they take long.
    import gdown
    from huggingface_hub import snapshot_download

    source = asset.source
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.hub:
        name = source.hub.removeprefix("datasets/")
        kind = None if name == source.hub else "dataset"
        snapshot_download(name, repo_type=kind, local_dir=place, allow_patterns=list(source.patterns) or None)
    elif source.drive:
        gdown.download_folder(id=source.drive, output=str(place), resume=True, quiet=True)
    else:
        gdown.download(source.url, str(place), resume=True, quiet=True)
