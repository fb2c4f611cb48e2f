"""The command line: parse, call, print. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from bench import (
    cli_assets,
    cli_build,
    cli_check,
    cli_compare,
    cli_folder,
    cli_perf,
    cli_reproduce,
    cli_run,
    cli_sae,
    cli_score,
    cli_show,
    cli_tune,
)
from bench.cli_options import err
from bench.errors import BenchError

app = typer.Typer(
    name="bench", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Compare methods that remove concepts from text-to-image diffusion models.\n\n"
    "Start with `python -m bench run`: SAeUron and PER on the embedded world, minutes on a laptop.",
)  # fmt: skip

app.command()(cli_run.run)
app.command()(cli_run.plan)
app.command()(cli_reproduce.reproduce)
app.command("list")(cli_show.list_)
app.command()(cli_show.show)
app.command()(cli_show.cards)
app.command()(cli_check.check)
app.command()(cli_folder.report)
app.command()(cli_folder.plot)
app.command()(cli_folder.status)
app.command()(cli_folder.verify)
app.command()(cli_compare.compare)
app.command()(cli_compare.matched)
app.command()(cli_perf.perf)
app.command()(cli_perf.numerics)
app.command("attack-loss")(cli_perf.attack_loss)
app.command()(cli_sae.locate)
app.command("train-sae")(cli_sae.train_sae)
app.command()(cli_sae.study)
app.command()(cli_sae.look)
app.command()(cli_tune.tune)
app.command()(cli_build.build)
app.command()(cli_score.score)
app.add_typer(cli_assets.app, name="assets")


def main() -> None:
    """Run the command line; a `BenchError` becomes one sentence and exit status 2."""
    try:
        app(standalone_mode=True)
    except BenchError as error:
        err.print(Text.assemble(("Error: ", "bold red"), str(error)), highlight=False, soft_wrap=True)
        sys.exit(2)
