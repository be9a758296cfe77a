"""Options and arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[str, typer.Argument(help="Name or id of a chute.")]
Ref = Annotated[
    str, typer.Argument(help="module:attribute, package.module:attribute or path/to/file.py:attribute.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes.")]
Lines = Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from before now.")]
