"""engines list, install, remove."""

from __future__ import annotations

import asyncio

from chutes import config as settings
from chutes.cli import output
from chutes.control.running import find_running
from chutes.engine import environment
from chutes.engine.release import EngineRelease, releases
from chutes.exception import ChutesError, NotFound


def list_all(as_json: bool) -> None:
    config = settings.load()
    rows = []
    for release in releases():
        here = environment.is_installed(release, config.engines)
        rows.append(
            {
                "id": release.id,
                "engine": release.name,
                "version": release.version,
                "accelerator": release.accelerator,
                "disk_bytes": release.disk_bytes,
                "installed": here is not None,
                "path": str(here.path) if here else None,
            }
        )
    if as_json:
        output.document(rows)
        return
    output.table(
        ["ID", "FOR", "DISK", "INSTALLED"],
        [[r["id"], r["accelerator"], output.size(r["disk_bytes"]), r["path"] or "no"] for r in rows],
    )


def install(engine: str, as_json: bool) -> None:
    config = settings.load()
    release = _find(engine)
    progress = output.progress()
    try:
        made = asyncio.run(
            environment.ensure(
                release,
                config.engines,
                lambda detail, share: progress.show(
                    "preparing", detail, round((share or 0) * 100), 0 if share is None else 100
                ),
            )
        )
    finally:
        progress.close()
    if as_json:
        output.document({"id": release.id, "path": str(made.path)})
    else:
        output.note(f"{release.id} is installed in {made.path}.")


def remove(engine: str, as_json: bool) -> None:
    config = settings.load()
    release = _find(engine)
    if find_running(config) is not None:
        raise ChutesError(f"A platform is running and may be using {engine}.", "`chutes down` first.")
    freed = environment.remove(config.engines, release.id)
    if as_json:
        output.document({"id": engine, "freed_bytes": freed})
    else:
        output.note(f"Removed {engine}: {output.size(freed)} freed.")


def _find(engine: str) -> EngineRelease:
    for release in releases():
        if release.id == engine:
            return release
    raise NotFound(f"There is no engine {engine!r}.", f"Known: {', '.join(r.id for r in releases())}.")
