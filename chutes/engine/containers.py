"""Images built and containers run by whichever of docker, podman and buildah works on this machine.

Command lines are made by pure functions; what runs them is short. The image of an author has the tag
`chutes/<username>/<name>:<tag>` and a label with the digest of all that it was made from, so that asking the
engine tells whether it is there and still the same. What an instance runs in is a second image upon it,
`chutes-run/...`, with chutes in its last layer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chutes.config import Config
from chutes.engine import command, contained, wheel
from chutes.exception import BuildFailed, ContainerError
from chutes.image import Image
from chutes.image.context import Context, added_by, gather

PROGRAMS = ("docker", "podman", "buildah")
RUNNERS = contained.ENGINES
"""buildah builds; it has no running containers with names."""

DIGEST = "chutes.digest"
"""Label: of what an image was made."""
HOME = "chutes.home"
"""Label of a container: whose platform it belongs to; for `docker ps --filter label=chutes.home`."""

PROBE_SECONDS = 20.0  # docker's client takes 10 s to give up on a daemon that takes connections and is silent
ENDING_SECONDS = 22.0  # as long as an engine has to finish what it has, and less than the minder's grace
SHARED_MEMORY = "16g"  # what the published platform gives; PyTorch's workers pass tensors through it
INSIDE = "/opt/chutes"
INTERPRETER = "container-"
LIFELINE = Path(__file__).parent / "inside" / "lifeline.py"

OnLine = Callable[[str], None]


@dataclass(frozen=True)
class Program:
    """A container engine that answered when it was asked."""

    name: str
    path: str

    @property
    def runs(self) -> bool:
        return self.name in RUNNERS


@dataclass(frozen=True)
class Built:
    """An image that is there."""

    reference: str
    id: str
    """`sha256:` and 64 hex digits."""
    digest: str
    """Of what it was made; empty for an image that is not ours."""
    user: str
    """Who runs in it; empty: root."""


def find(wanted: str = "", *, to_run: bool = False) -> Program:
    """The first container engine that works, in the order docker, podman, buildah.

    Args:
        wanted: a name of these; only that one is tried.
        to_run: it must also run containers.

    Raises:
        ContainerError: none does; says of each what it said.
    """
    names = [wanted] if wanted else RUNNERS if to_run else PROGRAMS
    said: list[str] = []
    for name in names:
        if name not in PROGRAMS:
            raise ContainerError(f"{name!r} is not a container engine.", f"Use {', '.join(PROGRAMS)}.")
        if (path := shutil.which(name)) is None:
            said.append(f"{name} is not installed")
        elif problem := _problem(name, path):
            said.append(f"{name} does not work: {problem}")
        else:
            return Program(name, path)
    raise ContainerError(
        f"No container engine works here: {'; '.join(said)}.",
        "Install podman (Debian, Ubuntu: `apt-get install -y podman`; Fedora: `dnf install podman`) or start "
        "docker's daemon. `chutes deploy` works without: an image's pip steps become a virtual environment.",
    )


def _problem(name: str, path: str) -> str:
    # Docker's client prints its own half and then fails for want of the daemon; the others are the engine.
    asked = ["version", "--format", "{{.Server.Version}}"] if name == "docker" else ["info"]
    try:
        done = subprocess.run(
            [path, *asked],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            env=command.inherited(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS:.0f} s"
    except OSError as error:
        return str(error.strerror)
    lines = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].strip().partition(". ")[0].rstrip(".") if done.returncode else ""


def chosen(config: Config) -> Program | None:
    """What authors' images are run with here; None where nothing works, or nothing is wanted. Blocking.

    Raises:
        ContainerError: the one that was asked for by name does not work.
    """
    if config.containers == "none":
        return None
    try:
        return find("" if config.containers == "auto" else config.containers, to_run=True)
    except ContainerError:
        if config.containers == "auto":
            return None
        raise


def is_interpreter(python: Path) -> bool:
    """Whether it is one of `interpreter`'s: then the image is honoured in full."""
    return python.parent.parent.name.startswith(INTERPRETER)


def tag_of(reference: str) -> str:
    """The name under which an author's image `username/name:tag` is kept; builders take small letters."""
    name, _, tag = reference.rpartition(":")
    return f"chutes/{name.lower()}:{tag}"


def build_command(
    program: Program, tag: str, dockerfile: Path, context: Path, digest: str, id_file: Path
) -> list[str]:
    """The command line that builds an image."""
    # OCI's own format has no SHELL and no HEALTHCHECK; docker's is read everywhere.
    form = [] if program.name == "docker" else ["--format", "docker"]
    verb = "bud" if program.name == "buildah" else "build"  # its name in every version
    return [
        *(program.path, verb, *form, "--tag", tag, "--label", f"{DIGEST}={digest}"),
        *("--iidfile", str(id_file), "--file", str(dockerfile), str(context)),
    ]


async def build(program: Program, image: Image, on_line: OnLine) -> Built:
    """Build an author's image, with the files that it adds and no others.

    Raises:
        ContainerError: the build failed; its lines were given to `on_line`.
    """
    context = await asyncio.to_thread(gather, image.added)
    return await build_text(program, tag_of(image.reference), str(image), context, on_line)


async def build_text(program: Program, tag: str, text: str, context: Context, on_line: OnLine) -> Built:
    """The same of a Dockerfile's text and the files that it adds."""
    digest = await asyncio.to_thread(context.digest, text)
    with tempfile.TemporaryDirectory(prefix="chutes-build-") as made:
        (place := Path(made) / "context").mkdir()
        await asyncio.to_thread(context.write, place)
        return await _build(program, tag, f"{text}\n", place, digest, on_line)


async def built(program: Program, image: Image) -> Built | None:
    """The author's image, if it is there and was made of what the image says now."""
    found = await inspect(program, tag_of(image.reference))
    digest = await asyncio.to_thread(lambda: gather(image.added).digest(str(image)))
    return found if found is not None and found.digest == digest else None


async def inspect(program: Program, reference: str) -> Built | None:
    """What the engine knows of an image; None if it has none of that name."""
    id, config = ("FromImageID", "Docker.Config") if program.name == "buildah" else ("Id", "Config")
    asked = f'{{{{.{id}}}}}|{{{{index .{config}.Labels "{DIGEST}"}}}}|{{{{.{config}.User}}}}'
    try:
        lines = await command.run(
            [program.path, "inspect", "--type", "image", "--format", asked, reference], timeout=PROBE_SECONDS
        )
    except command.CommandFailed:
        return None
    found, digest, user = lines[-1].split("|")
    return Built(reference, found if ":" in found else f"sha256:{found}", digest, user)


async def with_chutes(program: Program, reference: str, on_line: OnLine) -> Built:
    """The image that instances run in: `reference` with the running chutes in a last layer. Made if need be.

    Args:
        reference: an author's image that was built, or one that can be pulled.

    Raises:
        ContainerError: it is not there, or chutes cannot be installed in it.
    """
    below = await inspect(program, reference)
    if below is None:
        try:
            await command.run([program.path, "pull", reference], on_line=on_line)
        except command.CommandFailed as failure:
            raise _failed(f"Image {reference} is not here and cannot be pulled", failure) from None
        below = await inspect(program, reference)
    assert below is not None
    with tempfile.TemporaryDirectory(prefix="chutes-build-") as made:
        (place := Path(made) / "context").mkdir()
        installed = await asyncio.to_thread(wheel.write, place)
        shutil.copy(LIFELINE, place)
        text = last_layer(reference, below.user, installed.name)
        parts = (below.id.encode(), text.encode(), installed.read_bytes(), LIFELINE.read_bytes())
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
        tag = running_tag(reference)
        there = await inspect(program, tag)
        if there is not None and there.digest == digest:
            return there
        try:
            return await _build(program, tag, text, place, digest, on_line)
        except BuildFailed as error:
            raise BuildFailed(
                error.message,
                "The image's python3 installs chutes: it must be 3.11 or newer and have pip. Add "
                '.with_python("3.12.7") to the Image, or start from an image that has it.',
            ) from None


def running_tag(reference: str) -> str:
    """The name of the image that has chutes upon `reference`."""
    if reference.startswith("chutes/") and "@" not in reference:
        return f"chutes-run/{reference.removeprefix('chutes/')}"
    # A registry's port or a digest may not stand where they would come to stand.
    return f"chutes-run/named:{hashlib.sha256(reference.encode()).hexdigest()[:32]}"


def last_layer(reference: str, user: str, wheel_name: str) -> str:
    """The Dockerfile of chutes upon an image. Whose user it was stays; the root of a moment installs."""
    lines = [
        f"FROM {reference}",
        "USER 0",
        f"COPY {wheel_name} {LIFELINE.name} {INSIDE}/",
        # Debian's own Python wants to be told that this is meant; older pips do not read the variable.
        "RUN PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore "
        f"python3 -m pip install --no-cache-dir {INSIDE}/{wheel_name}",
    ]
    return "\n".join([*lines, f"USER {user}"] if user not in ("", "0", "root") else lines) + "\n"


async def _build(program: Program, tag: str, text: str, context: Path, digest: str, on_line: OnLine) -> Built:
    dockerfile, id_file = context.parent / "Dockerfile", context.parent / "id"
    dockerfile.write_text(text)
    try:
        await command.run(
            build_command(program, tag, dockerfile, context, digest, id_file),
            variables={"BUILDKIT_PROGRESS": "plain"},  # lines instead of a picture of them
            on_line=on_line,
        )
    except command.CommandFailed as failure:
        raise _failed(f"{program.name} could not build {tag}", failure) from None
    found = await inspect(program, tag)
    if found is None:
        raise ContainerError(f"{program.name} built {tag} and does not know it.", "Look at its own log.")
    return found


def _failed(what: str, failure: command.CommandFailed) -> BuildFailed:
    last = failure.lines[-1].strip() if failure.lines else ""
    return BuildFailed(
        f"{what} ({failure.reason}){': ' + last if last else ''}",
        "Mend the step that failed; CHUTES_CONTAINERS=none does without containers.",
    )


def settings(
    program: Program, image: str, home: Path, cache: Path, host: Mapping[str, str]
) -> dict[str, object]:
    """What `contained` needs to know to be the interpreter in `image`. The container shares the machine's
    network, so that an instance is reached on its loopback port.

    Args:
        cache: a directory for downloaded models, /cache inside as on the published platform.
        host: environment variables of this machine, which are none of the container's.
    """
    return {
        "engine": program.name,
        "run": [
            *(program.path, "run", "--rm", "--interactive", "--network=host", "--pull=never"),
            *(f"--label={HOME}={home}", f"--shm-size={SHARED_MEMORY}", f"--volume={cache}:/cache"),
            # Relabelling what is mounted for SELinux would change it for everybody else.
            *(["--security-opt=label=disable"] if program.name == "podman" else []),
        ],
        "image": [
            *("--entrypoint=python3", image, f"{INSIDE}/{LIFELINE.name}", f"{ENDING_SECONDS:g}", "python3")
        ],
        "variables": {"HF_HOME": "/cache", "CIVITAI_HOME": "/cache/civitai"},
        "host": {name: contained.fingerprint(value) for name, value in host.items()},
    }


async def interpreter(
    dockerfile: str, reference: str, files: Path, uid: str, config: Config, on_line: OnLine
) -> Path | None:
    """A program that is called like a Python and is one, in the container that a chute's image describes.

    Args:
        dockerfile: the text of the chute's `Image`; empty where an image is only named.
        reference: `username/name:tag`, or the name of an image that exists.
        files: where the files are that the Dockerfile adds.
        uid: of the chute: what it downloads is kept under it.

    Returns:
        None where no container engine works, or none is wanted: something else must do.

    Raises:
        ContainerError: the image could not be built, fetched, or given chutes.
    """
    program = await asyncio.to_thread(chosen, config) if reference else None
    if program is None:
        return None
    if dockerfile:
        reference = (await _author_image(program, dockerfile, tag_of(reference), files, on_line)).reference
    image = await with_chutes(program, reference, on_line)
    cache = config.cache / "containers" / uid
    await asyncio.to_thread(_make_cache, cache)
    told = settings(program, image.id, config.home, cache, command.inherited())
    # Named by all that is in it: another image is another program, and a running one keeps its own.
    text = json.dumps(told, indent=2)
    place = config.engines / f"{INTERPRETER}{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return await asyncio.to_thread(_write_interpreter, place, text)


async def _author_image(program: Program, text: str, tag: str, files: Path, on_line: OnLine) -> Built:
    context = await asyncio.to_thread(lambda: gather(added_by(text, files)))
    digest = await asyncio.to_thread(context.digest, text)
    found = await inspect(program, tag)
    if found is not None and found.digest == digest:
        return found
    return await build_text(program, tag, text, context, on_line)


def _make_cache(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.chmod(0o777)  # whoever the image's user is; nobody else of the machine gets past the parent


def _write_interpreter(place: Path, text: str) -> Path:
    program, told = place / "bin" / "python", place / "settings.json"
    program.parent.mkdir(parents=True, exist_ok=True)
    script = ["exec", sys.executable, "-I", "-S", contained.__file__, str(told)]
    for path, content in ((told, text), (program, f'#!/bin/sh\n{shlex.join(script)} "$@"\n')):
        new = path.with_name(f"{path.name}.{os.getpid()}")  # another instance may just be reading it
        new.write_text(content)
        new.chmod(0o700)
        new.replace(path)
    return program
