"""`chutes`: the program, and its commands that are in no group.

Here and in `groups` stands only what can be typed. What a command does is in a module of its own, which is
imported when the command runs.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from chutes.cli import groups
from chutes.cli.options import Follow, Json, Lines, Name, Ref, Yes
from chutes.exception import ChutesError

app = typer.Typer(
    help="Deploy models with one Python file, on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(groups.keys, name="keys")
app.add_typer(groups.engines, name="engines")
app.add_typer(groups.aliases, name="alias")
app.add_typer(groups.secrets, name="secrets")
app.add_typer(groups.jobs, name="jobs")


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
    follow: Follow = False,
    lines: Lines = 200,
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
