"""build: the image that a chute file describes, by the container engine of this machine."""

from __future__ import annotations

import asyncio

from chutes.chute.loader import load
from chutes.cli import output
from chutes.engine import containers
from chutes.exception import UsageError
from chutes.image import Image
from chutes.image.context import Context, gather

SHOWN_FILES = 10


def build(ref: str, *, dockerfile: bool, engine: str, force: bool, as_json: bool) -> None:
    loaded = load(ref)
    image = loaded.chute.image
    if not isinstance(image, Image):
        raise UsageError(
            f"Chute {loaded.chute.name!r} uses the image {image!r}, which exists already: no need to build "
            "anything!",
            f"`chutes deploy {ref}`; or describe an image of your own with chutes.image.Image.",
        )
    if dockerfile:
        output.say(str(image))
        return
    asyncio.run(_build(image, engine, force, as_json))


async def _build(image: Image, engine: str, force: bool, as_json: bool) -> None:
    program = containers.find(engine)
    found = None if force else await containers.built(program, image)
    if found is not None:
        output.note(f"{found.reference} is there and unchanged (--force builds it all the same).")
    else:
        _tell(gather(image.added))
        output.note(f"Building {containers.tag_of(image.reference)} with {program.name} …")
        found = await containers.build(program, image, lambda line: output.note(f"  {line}"))
    if as_json:
        output.document(
            {"image": found.reference, "id": found.id, "digest": found.digest, "engine": program.name}
        )
    else:
        output.note(f"{found.id}")
        output.say(found.reference)


def _tell(context: Context) -> None:
    """What leaves the author's directory, and what does not although it lies there."""
    if context.files:
        output.note(f"Build context: {len(context.files)} files, {output.size(context.size)}")
        names = list(context.files)
        for name in names[:SHOWN_FILES]:
            output.note(f"  {name}")
        if len(names) > SHOWN_FILES:
            output.note(f"  … and {len(names) - SHOWN_FILES} more")
    if context.left_out:
        shown = ", ".join(context.left_out[:SHOWN_FILES])
        output.note(f"Left out: {shown}{', …' if len(context.left_out) > SHOWN_FILES else ''}")
