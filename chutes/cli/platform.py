"""serve, down, ps, logs, delete: the platform and what runs on it."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from dataclasses import replace

import psutil

from chutes import config as settings
from chutes.cli import client, output
from chutes.control.running import find_running
from chutes.control.views import ChuteView
from chutes.engine.process import found_in, place_of, sweep
from chutes.exception import ChutesError

WHAT_CHARACTERS = 100  # a reason in full is in `ps --json` and in the logs

# Draining takes up to 10 s at the gateway, then engines get 25 s and the kill 5.
DOWN_SECONDS = 60.0


def serve(host: str | None, port: int | None, workers: int | None, no_auth: bool) -> None:
    from chutes.control.serve import serve as run_platform  # the web server, which no other command needs

    config = settings.load()
    config = replace(
        config,
        host=host or config.host,
        port=config.port if port is None else port,
        workers=config.workers if workers is None else workers,
        no_auth=no_auth or config.no_auth,
    )
    settings.check(config)
    keys = ", without keys for programs of this machine" if config.no_auth else ""
    run_platform(
        config, lambda url: output.note(f"Serving on {url}{keys} (Ctrl-C stops it)."), sys.stderr.isatty()
    )


def down() -> None:
    config = settings.load()
    running = find_running(config)
    if running is not None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was about to end anyway
            _end(psutil.Process(running.pid))
    left = sweep(place_of(config.home))
    if left:
        output.note(f"Ended what was left: pids {', '.join(map(str, left))}.")
    if found_in(place_of(config.home)):
        raise ChutesError(
            "Some processes could not be ended.", f"See `ps` for CHUTES_INSTANCE={config.home}:…"
        )
    output.note("The platform is down." if running else f"No platform of {config.home} was running.")


def _end(platform: psutil.Process) -> None:
    platform.terminate()
    try:
        platform.wait(DOWN_SECONDS)
    except psutil.TimeoutExpired:
        output.note(f"The platform (pid {platform.pid}) did not end within {DOWN_SECONDS:.0f} s; killing it.")
        platform.kill()
        platform.wait(5)


def ps(as_json: bool) -> None:
    views = [
        ChuteView.model_validate(item) for item in client.connect(settings.load()).call("GET", "/chutes/")
    ]
    if as_json:
        output.document([view.model_dump(mode="json") for view in views])
        return
    if not views:
        output.note("Nothing is deployed. Try: chutes deploy templates.vllm_chute:chute")
        return
    output.table(
        ["NAME", "KIND", "SLUG", "PHASE", "SINCE", "ENGINE", "ON", "$/M", "WHAT"],
        [_row(view, time.time()) for view in views],
    )


def _row(view: ChuteView, now: float) -> list[str]:
    instance, price = view.instance, view.price
    cost = f"{price.prompt:g}/{price.completion:g}" if price else "-"
    # Where an author's own is asked; a model is asked by its name.
    slug = view.slug if view.kind == "own" else "-"
    if instance is None:
        return [view.name, view.kind, slug, view.phase, "", view.engine, view.accelerator, cost, ""]
    what = textwrap.shorten(instance.reason or instance.detail, WHAT_CHARACTERS, placeholder=" …")
    if instance.total:
        what += f" {instance.done / instance.total:.0%}"
    if view.retry_in_seconds is not None:
        what += f" Next try in {view.retry_in_seconds:.0f} s."
    if view.undone:
        what += f" Version {view.undone[:8]}, deployed last, failed; this is the one before it."
    if view.given_up:
        what += " Not tried again until it is deployed again."
    since = output.age(now - instance.changed_at)
    return [view.name, view.kind, slug, view.phase, since, view.engine, view.accelerator, cost, what]


def logs(name: str, follow: bool, lines: int) -> None:
    platform = client.connect(settings.load())
    with contextlib.suppress(KeyboardInterrupt):
        for text in platform.lines(
            client.named("chutes", name, "logs"), follow=str(follow).lower(), backfill=lines
        ):
            sys.stdout.write(text)
            sys.stdout.flush()


def sleep(name: str, as_json: bool) -> None:
    platform = client.connect(settings.load())
    view = platform.call("POST", client.named("chutes", name) + "/sleep")
    if as_json:
        output.document(view)
    else:
        output.note(f"{view['name']} sleeps; the next request for it starts it again and waits.")


def delete(name: str, yes: bool, as_json: bool) -> None:
    platform = client.connect(settings.load())
    view = platform.call("GET", client.named("chutes", name))
    if not yes and output.on_terminal() and not output.confirm(f"Stop {view['name']} and forget it?"):
        output.note("Nothing was deleted.")
        raise SystemExit(1)
    answer = platform.call("DELETE", f"/chutes/{view['chute_id']}")
    if as_json:
        output.document(answer)
    else:
        output.note(f"Deleted {view['name']}; its instance is being stopped.")
