"""What the commands share: consoles and options."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from bench.config import DTypeName

out, err = Console(emoji=False), Console(stderr=True, emoji=False)  # "style:sunset" is no emoji
BATCH_SIZE = 16

SuiteName = Annotated[str, typer.Option("--suite", help="Protocol; `list suites` names them.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
DType = Annotated[DTypeName, typer.Option(help="auto measures and takes bfloat16 only where it is faster.")]
BatchSize = Annotated[int, typer.Option(min=2, max=4_096, help="Pictures (two conditions each) in one UNet call.")]
