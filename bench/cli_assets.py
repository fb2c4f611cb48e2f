"""Commands on published files: `assets list`, `assets fetch`, `assets verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bench import registry
from bench.cli_options import AssetFiles, AssetFolder, err, out
from bench.errors import BenchError, unknown

if TYPE_CHECKING:
    from bench.assets import Asset

app = typer.Typer(no_args_is_help=True, help="Published files that suites need: what they are, download them, check them.")
Suite = Annotated[str, typer.Option("--suite", help="Of which suite.")]
Names = Annotated[list[str] | None, typer.Argument(help="Only these. Default: all.", show_default=False)]


@app.command("list")
def list_(suite: Suite = "unlearncanvas", folder: AssetFolder = None, files: AssetFiles = None) -> None:
    """Every file that a suite needs: where it is published, licence, size, what for, and whether it is here (`verify` reads it)."""
    from bench import assets

    for asset in _assets(suite, None):
        found = assets.find(asset)
        out.print(f"[bold]{asset.name}[/bold]: {asset.what}; for {asset.needed_for}", highlight=False, soft_wrap=True)
        out.print(f"  {asset.source} · {asset.licence} · {asset.size}", markup=False, highlight=False, soft_wrap=True)
        place = f"here: {found}" if found else f"not here: {assets.place_of(asset)}"
        out.print(f"  {place}", markup=False, highlight=False, soft_wrap=True)
        for name, digest in assets.digests(asset).items():
            out.print(f"  {digest}  {name}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Which. Default: what SAeUron and PER need.", show_default=False)] = None,
    suite: Suite = "unlearncanvas", folder: AssetFolder = None, files: AssetFiles = None,
    again: Annotated[bool, typer.Option("--again", help="Remove what there is of the named ones first.")] = False,
) -> None:  # fmt: skip
    """Download what is not here; what was begun is continued.

    Examples: `python -m bench assets fetch` · `python -m bench assets fetch images --assets /data/assets`
    """
    from bench.assets import EVERY_RUN, forget
    from bench.download import fetch as download

    if again and not names:
        raise BenchError("--again removes files: name those that it is for.")
    wanted = [asset for asset in _assets(suite, names) if names or asset.usual or asset.needed_for == EVERY_RUN]
    for asset in wanted:
        if again:
            forget(asset)
        with err.status(asset.key):
            found = download(asset, lambda text: err.print(text, highlight=False, soft_wrap=True))
        err.print(f"{asset.key}: {found}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    names: Names = None, suite: Suite = "unlearncanvas", folder: AssetFolder = None, files: AssetFiles = None,
    accept: Annotated[bool, typer.Option("--accept", help="Take changed files, and those of a download that did not end, as they "
                                                          "are now.")] = False,
) -> None:  # fmt: skip
    """Read every file that is here and hold it against the digest that is published or was written down at first use.

    Exit status 1 if one has changed. What is not here is only said.
    """
    from bench import assets

    broken = 0
    for asset in _assets(suite, names):
        if accept:
            assets.begun(asset).unlink(missing_ok=True)  # files that were brought by hand after a download that did not end
        found = assets.find(asset)
        if found is None:
            out.print(f"{asset.key} is not here: {assets.place_of(asset)}", highlight=False, soft_wrap=True)
            continue
        try:
            with err.status(f"reading {asset.key}"):
                digests = assets.check(asset, found, again=True, accept=accept)
        except BenchError as error:
            broken += 1
            out.print(str(error), markup=False, highlight=False, soft_wrap=True)
            continue
        for name, digest in digests.items():
            out.print(f"{digest}  {asset.name}: {name}", markup=False, highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def _assets(suite: str, names: list[str] | None) -> list[Asset]:
    known = registry.suite(suite).files
    for name in names or ():
        if name not in known:
            raise unknown(f"asset of {suite}", name, known)
    return [asset for name, asset in known.items() if not names or name in names]
