"""deploy: from a reference to an endpoint that answers."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

from chutes import config as settings
from chutes.chute import bundle
from chutes.chute.loader import load
from chutes.chute.spec import ChuteSpec, require_revision
from chutes.cli import client, output
from chutes.control.deploying import Draft, check_arguments, draft
from chutes.control.views import ChuteView, DeployView, InstanceView
from chutes.engine import registry
from chutes.engine.contract import Endpoint, Start
from chutes.engine.lifecycle import Phase
from chutes.exception import ChutesError, EngineFailed

POLL_SECONDS = 0.25

EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    ),
    "completions": ("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 8}),
    "embeddings": ("/v1/embeddings", {"input": ["The capital of France is Paris.", "Cats sleep all day."]}),
    "images": ("/v1/images/generations", {"prompt": "a red bicycle", "response_format": "b64_json"}),
}
"""What a person may try first, by what a chute can do; the first that it can."""

KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"


def deploy(
    ref: str, *, yes: bool, wait: bool, as_json: bool, dry_run: bool, strict: bool, check: bool = False
) -> None:
    config = settings.load()
    loaded = load(ref)
    spec = loaded.chute.to_spec(ref=loaded.ref, code=loaded.code)
    snapshot = None
    if spec.engine is None:
        snapshot = bundle.make(loaded)
        spec = spec.model_copy(update={"bundle": snapshot.digest, "entry": snapshot.entry})
    if strict:
        require_revision(spec)
    if dry_run:
        # On this machine and without a platform: a dry run starts nothing, not even that.
        worked_out = draft(spec, config, offline=True)
        asyncio.run(check_arguments(worked_out, config))
        _show(DeployView(draft=worked_out), as_json)
        if check and not worked_out.plan.fits:
            raise SystemExit(output.DOES_NOT_FIT)
        return
    platform = client.connect_or_start(config)
    if snapshot is not None:
        _send(platform, snapshot)
    if spec.engine is not None and spec.engine.args:
        output.note("Having the engine's own parser check engine_args (some seconds if they are new) …")
    if not yes and output.on_terminal():
        preview = _post(platform, spec, dry_run=True)
        _describe(preview.draft)
        if not output.confirm(f"Deploy {spec.name}?"):
            output.note("Nothing was deployed.")
            raise SystemExit(1)
        view = _post(platform, spec)
    else:
        view = _post(platform, spec)
        if not as_json:
            _describe(view.draft)
    assert view.chute is not None
    if view.unchanged and view.chute.phase == Phase.READY:
        output.note(f"{spec.name} runs in this very version already.")
        if not as_json:
            output.say(_address(platform, view.chute))
            return
    if not wait:
        output.document(_document(view)) if as_json else output.note(
            "Deploying; `chutes ps` shows how far it is."
        )
        return
    try:
        ready = _wait(platform, view.chute)
    except KeyboardInterrupt:
        output.note(
            f"{spec.name} goes on starting; `chutes ps` shows how far it is, `chutes delete` stops it."
        )
        raise
    if as_json:
        output.document({**_document(view), "chute": ready.model_dump(mode="json"), "url": platform.url})
    else:
        _invite(platform, ready)


def _send(platform: client.Platform, snapshot: bundle.Bundle) -> None:
    files = f"{len(snapshot.files)} file{'s' * (len(snapshot.files) != 1)}"
    output.note(f"Sending {files}, {len(snapshot.data) / 1024:.0f} KiB: {_some(snapshot.files)}")
    if snapshot.left_out:
        output.note(f"Not sent, as they look like secrets: {_some(snapshot.left_out)}")
    platform.upload("/bundles", snapshot.data, digest=snapshot.digest)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def _post(platform: client.Platform, spec: ChuteSpec, dry_run: bool = False) -> DeployView:
    body = {"spec": spec.model_dump(mode="json")}
    return DeployView.model_validate(platform.call("POST", "/chutes/", body, dry_run=str(dry_run).lower()))


def _wait(platform: client.Platform, chute: ChuteView) -> ChuteView:
    """Show phases until it is ready.

    Raises:
        EngineFailed: it failed and will not be tried again; with the reason and the log's last lines.
    """
    progress = output.progress()
    failed: set[str] = set()
    try:
        while True:
            view = ChuteView.model_validate(platform.call("GET", f"/chutes/{chute.chute_id}"))
            if view.version != chute.version:
                ours = [i for i in view.instances if i.version == chute.version and i.reason]
                if view.undone == chute.version and ours:
                    output.note("The version before it is started again; `chutes ps` shows it.")
                    raise _failure(view, ours[-1])
                raise ChutesError(
                    f"{view.name} was deployed in another version meanwhile.", "`chutes ps` shows it."
                )
            instance = view.instance
            if instance is not None and instance.version == view.version:
                if view.phase == Phase.READY:
                    return view
                if instance.phase == Phase.FAILED and instance.instance_id not in failed:
                    failed.add(instance.instance_id)
                    if view.given_up:
                        raise _failure(view, instance)
                    output.note(f"failed: {instance.reason} Trying again.")
                progress.show(view.phase, instance.detail, instance.done, instance.total)
            time.sleep(POLL_SECONDS)
    finally:
        progress.close()


def _failure(view: ChuteView, instance: InstanceView) -> EngineFailed:
    if instance.log_tail:
        output.note("Last lines of the engine's log:")
        for line in instance.log_tail:
            output.note(f"  | {line}")
    return EngineFailed(f"{view.name} failed: {instance.reason}", instance.fix)


def _show(view: DeployView, as_json: bool) -> None:
    """A dry run's plan is its answer: all of it goes to standard output."""
    if as_json:
        output.document(_document(view))
    else:
        _describe(view.draft, output.say)
        if view.draft.plan.fits:
            for line in _folded("  would run   ", _command(view.draft)):
                output.say(line)


def _document(view: DeployView) -> dict[str, Any]:
    """For a script: everything but the chute file's text and the cords' schemas, which it has already."""
    # Of thirty layers the same is said thirty times: `attention` and `layers` say it once.
    hidden = {"spec": {"code", "cords"}, "facts": {"layers_attention"}}
    return view.model_dump(mode="json", exclude={"draft": hidden})


def _folded(head: str, words: list[str]) -> list[str]:
    """A command over several lines that can be pasted as they are."""
    width = shutil.get_terminal_size((100, 24)).columns - 2
    lines: list[str] = []
    line = head
    for word in words:
        text = shlex.quote(word)
        if len(line) + 1 + len(text) > width and line.strip():
            lines.append(f"{line} \\")
            line = " " * len(head) + text
        else:
            line = f"{line}{'' if line == head else ' '}{text}"
    return [*lines, line]


def _describe(worked_out: Draft, tell: Callable[[str], None] = output.note) -> None:
    """The plan, one fact a line."""
    spec, chosen = worked_out.spec, worked_out.plan
    lines: list[tuple[str, str]] = [
        ("chute", f"{spec.name} ({spec.uid})"),
        *([("weights", worked_out.source.note)] if worked_out.source else []),
        ("engine", f"{chosen.engine} {chosen.engine_version} on {chosen.accelerator}"),
    ]
    if worked_out.source and worked_out.source.revision:
        lines.append(("revision", worked_out.source.revision))
    lines += [("because", reason) for reason in chosen.reasons]
    lines += [("note", text) for text in worked_out.notes]
    lines.append(("version", worked_out.version))
    if chosen.problem:
        lines += [("!! no fit", chosen.problem), ("fix", chosen.fix)]
    width = shutil.get_terminal_size((110, 24)).columns
    previous = ""
    for label, text in lines:
        head = f"  {'' if label == previous else label:<11} "
        tell(
            textwrap.fill(
                text,
                width,
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
        previous = label


def _command(worked_out: Draft) -> list[str]:
    from pathlib import Path

    spec, source = worked_out.spec, worked_out.source
    engine = registry.of(worked_out.plan.engine)
    start = Start(
        spec,
        worked_out.plan,
        Path("python"),
        Path(f"<{source.location}>") if source else None,
        (spec.name, spec.uid),
        Endpoint("127.0.0.1", 0, ""),
        Path("<instance>"),
    )
    space = engine.variables(start).get(KV_SPACE)
    return [f"{KV_SPACE}={space}"] * bool(space) + engine.command(start)


def _address(platform: client.Platform, view: ChuteView) -> str:
    """Where a chute is asked: of an author's own code by its slug, of a model by its name."""
    return f"{platform.url}/v1" if view.model else f"{platform.url}/{view.slug}"


def _invite_own(platform: client.Platform, view: ChuteView) -> None:
    """The same for an author's own code."""
    base = _address(platform, view)
    output.say(base)
    output.note(f"Its functions: {', '.join(view.public_paths) or 'none with a public path'}")
    output.note(f"In a browser: {base}/docs")
    if not platform.call("GET", "/api_keys/"):
        output.note("A key for it: export CHUTES_API_KEY=$(chutes keys create --name me)")


def _invite(platform: client.Platform, view: ChuteView) -> None:
    """What a person does next."""
    instance: Any = view.instance
    output.note(f"{view.name} is ready after {instance.ready_after_seconds:.0f} s.")
    if not view.model:
        _invite_own(platform, view)
        return
    output.say(_address(platform, view))
    output.note("Try it:")
    if not platform.call("GET", "/api_keys/"):
        output.note("  export CHUTES_API_KEY=$(chutes keys create --name me)")
    path, body = example(view)
    output.note(
        f"  curl {platform.url}{path} \\\n"
        f'    -H "Authorization: Bearer $CHUTES_API_KEY" -H "Content-Type: application/json" \\\n'
        f"    -d {shlex.quote(json.dumps(body))}"
    )


def example(view: ChuteView) -> tuple[str, dict[str, Any]]:
    """A path and a body to try first, by what the chute can do."""
    for able, (path, body) in EXAMPLES.items():
        if able in view.capabilities:
            return path, {"model": view.name, **body}
    own = [path for path in view.public_paths if path != "/v1/models"]
    return f"/{view.slug}{own[0] if own else ''}", {}
