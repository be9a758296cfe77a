"""Commands of two words: `chutes keys create`, `chutes jobs run` and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chutes.cli.options import Follow, Json, Lines, Name
from chutes.exception import UsageError

keys = typer.Typer(help="API keys for clients.", no_args_is_help=True)
engines = typer.Typer(help="Environments of model servers on this machine.", no_args_is_help=True)
aliases = typer.Typer(help="Further names for chutes.", no_args_is_help=True)
secrets = typer.Typer(help="Environment variables for chutes, shown to nobody.", no_args_is_help=True)
jobs = typer.Typer(help="Functions of a chute that run once and leave files.", no_args_is_help=True)


@keys.command("create")
def keys_create(
    name: Annotated[str | None, typer.Argument(help="1 to 24 characters.")] = None,
    named: Annotated[str | None, typer.Option("--name", help="The same.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May also manage the platform.")] = False,
    chutes: Annotated[list[str] | None, typer.Option("--chute", help="Only this chute (repeatable).")] = None,
    expires: Annotated[
        str | None, typer.Option(help="30d, or the last day it is good: 2026-12-31 (UTC).")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Default: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Prompt and completion.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    json: Json = False,
) -> None:
    """Make a key. It is shown once."""
    from chutes.cli import keys as command

    if (given := name or named) is None:
        raise UsageError("A key needs a name.", "chutes keys create NAME")
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    command.create(given, admin, chutes, expires, limits, json)


@keys.command("list")
def keys_list(json: Json = False) -> None:
    """All keys, without their secrets."""
    from chutes.cli import keys as command

    command.list_all(json)


@keys.command("delete")
def keys_delete(
    name: Annotated[str, typer.Argument(help="Name or id of a key.")], json: Json = False
) -> None:
    """Take a key out of use, at once."""
    from chutes.cli import keys as command

    command.delete(name, json)


EngineId = Annotated[str, typer.Argument(help="An id from `chutes engines list`.")]


@engines.command("list")
def engines_list(json: Json = False) -> None:
    """Engines that can be had, and which are installed."""
    from chutes.cli import engines as command

    command.list_all(json)


@engines.command("install")
def engines_install(engine: EngineId, json: Json = False) -> None:
    """Make an engine's environment now instead of at the first deploy."""
    from chutes.cli import engines as command

    command.install(engine, json)


@engines.command("remove")
def engines_remove(engine: EngineId, json: Json = False) -> None:
    """Delete an engine's environment and give its disk space back."""
    from chutes.cli import engines as command

    command.remove(engine, json)


@aliases.command("set")
def alias_set(
    alias: Annotated[str, typer.Argument(help="What requests may say as `model`.")],
    chute: Name,
    json: Json = False,
) -> None:
    """Have requests for ALIAS go to a chute."""
    from chutes.cli import names as command

    command.alias_set(alias, chute, json)


@aliases.command("list")
def alias_list(json: Json = False) -> None:
    """All aliases."""
    from chutes.cli import names as command

    command.alias_list(json)


@aliases.command("delete")
def alias_delete(alias: Annotated[str, typer.Argument(help="An alias.")], json: Json = False) -> None:
    """Forget an alias."""
    from chutes.cli import names as command

    command.alias_delete(alias, json)


Restart = Annotated[bool, typer.Option("--restart", help="Restart the chutes that run without it.")]


@secrets.command("create")
def secrets_create(
    key: Annotated[str, typer.Option(help="Name of the environment variable.")],
    purpose: Annotated[str, typer.Option(help="Name or id of a chute; default: all chutes.")] = "",
    value: Annotated[
        str | None, typer.Option(help="Better left out: then it is asked for, or read from stdin.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Another value for one that is there.")] = False,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Keep a secret for a chute's instances and jobs."""
    from chutes.cli import secrets as command

    command.create(purpose, key, value, replace, restart, json)


@secrets.command("list")
def secrets_list(json: Json = False) -> None:
    """All secrets, without their values."""
    from chutes.cli import secrets as command

    command.list_all(json)


@secrets.command("delete")
def secrets_delete(
    name: Annotated[str, typer.Argument(help="Key or id of a secret.")],
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Forget a secret."""
    from chutes.cli import secrets as command

    command.delete(name, restart, json)


Run = Annotated[str, typer.Argument(help="Id of a run, from `chutes jobs list`.")]


@jobs.command("run")
def jobs_run(
    chute: Name,
    job: Annotated[str, typer.Argument(help="Name of the job's function.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="name=value, the value JSON or else text.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="All of them as JSON, or @file.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is over; 1 if it failed.")] = False,
    json: Json = False,
) -> None:
    """Start a job."""
    from chutes.cli import jobs as command

    command.run(chute, job, arguments or [], data, wait, json)


@jobs.command("list")
def jobs_list(
    chute: Annotated[str | None, typer.Option(help="Only of this chute.")] = None, json: Json = False
) -> None:
    """Runs of jobs, and how they are."""
    from chutes.cli import jobs as command

    command.list_all(chute, json)


@jobs.command("show")
def jobs_show(run: Run, json: Json = False) -> None:
    """One run: its status, result and files."""
    from chutes.cli import jobs as command

    command.show(run, json)


@jobs.command("cancel")
def jobs_cancel(run: Run, json: Json = False) -> None:
    """Ask a run to stop; kill it if it does not."""
    from chutes.cli import jobs as command

    command.cancel(run, json)


@jobs.command("logs")
def jobs_logs(
    run: Run,
    follow: Follow = False,
    lines: Lines = 200,
) -> None:
    """What a run has written."""
    from chutes.cli import jobs as command

    command.logs(run, follow, lines)


@jobs.command("files")
def jobs_files(run: Run, json: Json = False) -> None:
    """Files that a run has left."""
    from chutes.cli import jobs as command

    command.files(run, json)


@jobs.command("download")
def jobs_download(
    run: Run,
    path: Annotated[str | None, typer.Argument(help="One file; default: all.")] = None,
    to: Annotated[Path, typer.Option(help="Directory to put them in.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Bring a run's files here."""
    from chutes.cli import jobs as command

    command.download(run, path, to, force)
