"""`chutes`: the program. One module per command group, imported only when one of its commands runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chutes.exception import ChutesError, UsageError

app = typer.Typer(
    help="Deploy models with one Python file, on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
keys = typer.Typer(help="API keys for clients.", no_args_is_help=True)
engines = typer.Typer(help="Environments of model servers on this machine.", no_args_is_help=True)
app.add_typer(keys, name="keys")
aliases = typer.Typer(help="Further names for chutes.", no_args_is_help=True)
app.add_typer(engines, name="engines")
app.add_typer(aliases, name="alias")
secrets = typer.Typer(help="Environment variables for chutes, shown to nobody.", no_args_is_help=True)
jobs = typer.Typer(help="Functions of a chute that run once and leave files.", no_args_is_help=True)
app.add_typer(secrets, name="secrets")
app.add_typer(jobs, name="jobs")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[str, typer.Argument(help="Name or id of a chute.")]
Ref = Annotated[
    str, typer.Argument(help="module:attribute, package.module:attribute or path/to/file.py:attribute.")
]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Gateway processes.")] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask for no keys; on this machine only.")
    ] = False,
) -> None:
    """Run the platform in the foreground."""
    from chutes.cli import platform

    platform.serve(host, port, workers, no_auth)


@app.command()
def down() -> None:
    """Stop the platform and everything it started."""
    from chutes.cli import platform

    platform.down()


@app.command()
def deploy(
    ref: Ref,
    yes: Yes = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is ready.")] = True,
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, start nothing.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="With --dry-run: exit with 3 when it does not fit here.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Demand a revision, as chutes.ai does.")] = False,
    public: Annotated[bool, typer.Option("--public", hidden=True)] = False,
    accept_fee: Annotated[bool, typer.Option("--accept-fee", hidden=True)] = False,
) -> None:
    """Turn a chute into an endpoint that answers."""
    from chutes.cli import deploy as command

    # Published flags that mean nothing on one's own machines are taken, so that scripts go on working.
    del public, accept_fee
    command.deploy(ref, yes=yes, wait=wait, as_json=json, dry_run=dry_run, strict=strict, check=check)


@app.command()
def build(
    ref: Ref,
    dockerfile: Annotated[
        bool, typer.Option("--dockerfile", help="Print the Dockerfile, build nothing.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="docker, podman or buildah; default: the first that works.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Also when it is there and unchanged.")] = False,
    json: Json = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", hidden=True)] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", hidden=True)] = True,
    local: Annotated[bool, typer.Option("--local", hidden=True)] = True,
    public: Annotated[bool, typer.Option("--public", hidden=True)] = False,
) -> None:
    """Build the image that a chute's `Image` describes."""
    from chutes.cli import build as command

    # Published flags: a build here is local, asks nothing and is over when the command is.
    del yes, wait, local, public
    command.build(ref, dockerfile=dockerfile, engine=engine, force=force, as_json=json)


@app.command()
def init(
    template: Annotated[str, typer.Argument(help="vllm, sglang, diffusion, embedding or custom.")],
    name: Annotated[str, typer.Option(help="The file, without .py.")] = "my_chute",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a chute file to begin with into the current directory."""
    from chutes.cli import init as command

    command.init(template, name, force)


@app.command()
def ps(json: Json = False) -> None:
    """What is deployed and how it is."""
    from chutes.cli import platform

    platform.ps(json)


@app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from before now.")] = 200,
) -> None:
    """The engine's log of a chute."""
    from chutes.cli import platform

    platform.logs(name, follow, lines)


@app.command()
def delete(name: Name, yes: Yes = False, json: Json = False) -> None:
    """Stop a chute and forget it."""
    from chutes.cli import platform

    platform.delete(name, yes, json)


@app.command()
def sleep(name: Name, json: Json = False) -> None:
    """Stop a chute's instance until somebody asks for it: its devices are free, its name stays."""
    from chutes.cli import platform

    platform.sleep(name, json)


@app.command()
def run(
    ref: Ref,
    dev: Annotated[bool, typer.Option("--dev", help="Plain HTTP in the foreground.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Run one chute in the foreground, without keys."""
    from chutes.cli import run as command

    command.run(ref, dev, host, port)


@app.command()
def plan(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, directory with a config.json, or a catalogue name.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A commit or branch: asks the hub.")] = None,
    max_model_len: Annotated[
        str | None,
        typer.Option(help="Tokens, also as 32k (32,000) or 32K (32,768); default: the model's own."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests of that length to hold at once; default 1.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="A GPU type: its short id or product name. Repeatable: those you have."),
    ] = None,
    gpu_count: Annotated[int | None, typer.Option(help="With --gpu: exactly this hardware.")] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto or fp8.")] = "auto",
    engine: Annotated[str, typer.Option(help="vllm or sglang.")] = "vllm",
    engine_version: Annotated[str, typer.Option(help="Defaults changed between versions.")] = "",
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of each GPU; default: the engine's.")
    ] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(help="Default: tried.")] = None,
    pipeline_parallel_size: Annotated[int | None, typer.Option(help="Default: tried.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests at once, of any length.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Default: the engine's.")] = None,
    optimize: Annotated[
        str, typer.Option(help="price, latency, or throughput (tokens for a dollar).")
    ] = "price",
    max_price: Annotated[float | None, typer.Option(help="Dollars an hour, all GPUs.")] = None,
    max_tpot: Annotated[float | None, typer.Option(help="Milliseconds per token, estimated.")] = None,
    why: Annotated[bool, typer.Option("--why", help="All reasons, and all that was rejected.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 when it does not fit.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Only what is in this machine, as used now.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Size tiers beside the arithmetic.")] = False,
    json: Json = False,
) -> None:
    """Which hardware a model needs, how it is used, and why; downloads nothing."""
    from chutes.cli import plan as command

    asked = command.Asked(
        max_model_len=max_model_len,
        concurrency=concurrency,
        gpu=tuple(gpu or ()),
        gpu_count=gpu_count,
        kv_cache_dtype=kv_cache_dtype,
        engine=engine,
        engine_version=engine_version,
        gpu_memory_utilization=gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        optimize=optimize,
        max_price=max_price,
        max_tpot=max_tpot,
    )
    command.plan(model, revision, asked, here=here, compare=compare, as_json=json, why=why, check=check)


@app.command()
def doctor(json: Json = False) -> None:
    """What is here: Python, GPUs, memory, disk, engines, the model hub."""
    from chutes.cli import doctor as command

    command.doctor(json)


# The harness reads its own options, also --help: they are many, and it can be run without this program.
@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def bench(context: typer.Context) -> None:
    """Measure how fast a served model is: `chutes bench run --help`."""
    from chutes.cli import bench as command

    command.bench(context.args)


@app.command()
def usage(
    chute: Annotated[str | None, typer.Option(help="Only this chute: its name or id.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key: its name or id.")] = None,
    since: Annotated[str, typer.Option(help="24h, 30d, or a date: 2026-11-01 (UTC).")] = "24h",
    by: Annotated[str, typer.Option(help="chute, key, hour, day or status.")] = "chute",
    page: Annotated[int, typer.Option(min=0, help="The first is 0.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows of a page.")] = 100,
    json: Json = False,
) -> None:
    """Requests, tokens, times and cost."""
    from chutes.cli import usage as command

    command.usage(since, by, chute, key, page, limit, json)


@app.command()
def price(
    name: Name,
    prompt: Annotated[float | None, typer.Option(help="Dollars per million prompt tokens.")] = None,
    completion: Annotated[float | None, typer.Option(help="Dollars per million generated.")] = None,
    cached: Annotated[float | None, typer.Option(help="Of cached prompt tokens; default: --prompt.")] = None,
    free: Annotated[bool, typer.Option("--free", help="Take the price away.")] = False,
    json: Json = False,
) -> None:
    """Show or set what a chute's tokens cost. Stays when it is deployed anew."""
    from chutes.cli import names as command

    command.price(name, prompt, completion, cached, free, json)


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


@engines.command("list")
def engines_list(json: Json = False) -> None:
    """Engines that can be had, and which are installed."""
    from chutes.cli import engines as command

    command.list_all(json)


@engines.command("install")
def engines_install(
    engine: Annotated[str, typer.Argument(help="An id from `chutes engines list`.")], json: Json = False
) -> None:
    """Make an engine's environment now instead of at the first deploy."""
    from chutes.cli import engines as command

    command.install(engine, json)


@engines.command("remove")
def engines_remove(
    engine: Annotated[str, typer.Argument(help="An id from `chutes engines list`.")], json: Json = False
) -> None:
    """Delete an engine's environment and give its disk space back."""
    from chutes.cli import engines as command

    command.remove(engine, json)


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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from before now.")] = 200,
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


def _version(wanted: bool) -> None:
    if wanted:
        import chutes

        typer.echo(f"chutes {chutes.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the program: exit code 0 done, 1 failed, 2 wrong usage, 3 does not fit (where --check asks for
    it), 130 interrupted (which typer sees to)."""
    from chutes.cli import output

    output.tame_streams()
    try:
        app()
    except ChutesError as error:
        output.failure(error, as_json="--json" in sys.argv[1:])
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `chutes logs | head`
        sys.stderr.close()
        sys.exit(0)
