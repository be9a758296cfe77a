"""Images built and containers run by whichever of docker, podman and buildah works on this machine.

Command lines are made by pure functions; what runs them is short. The image of an author has the tag
`chutes/<username>/<name>:<tag>` and a label with the digest of all that it was made from, so that asking the
engine tells whether it is there and still the same. What an instance runs in is a second image upon it,
`chutes-run/...`, with chutes in its last layer.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chutes.engine import command, contained, wheel
from chutes.exception import ContainerError
from chutes.image import Image
from chutes.image.context import Context, gather

PROGRAMS = ("docker", "podman", "buildah")
RUNNERS = ("docker", "podman")
"""buildah builds and has no notion of a running container with a name."""

DIGEST = "chutes.digest"
"""Label: of what an image was made."""
HOME = "chutes.home"
"""Label of a container: whose platform it belongs to; for `docker ps --filter label=chutes.home`."""

PROBE_SECONDS = 20.0  # docker's client takes 10 s to give up on a daemon that takes connections and is silent
ENDING_SECONDS = 22.0  # as long as an engine has to finish what it has, and less than the minder's grace
SHARED_MEMORY = "16g"  # what the published platform gives; PyTorch's workers pass tensors through it
INSIDE = "/opt/chutes"
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


@dataclass(frozen=True)
class Mount:
    """A directory of this machine, at the same path inside: so paths in arguments hold on both sides."""

    path: Path
    writable: bool = False
    at: str = ""
    """Another path inside."""


@dataclass(frozen=True)
class Container:
    """One container that is about to be run."""

    name: str
    image: str
    command: Sequence[str]
    home: Path
    workdir: Path
    gpus: Sequence[int] = ()
    mounts: Sequence[Mount] = ()
    variables: Sequence[str] = field(default=())
    """Names of environment variables that it gets; values stand in the environment of who starts it."""


async def find(wanted: str = "", *, to_run: bool = False) -> Program:
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
        elif problem := await _problem(name, path):
            said.append(f"{name} does not work: {problem}")
        else:
            return Program(name, path)
    raise ContainerError(
        f"No container engine works here: {'; '.join(said)}.",
        "Install podman (Debian, Ubuntu: `apt-get install -y podman`; Fedora: `dnf install podman`) or start "
        "docker's daemon. `chutes deploy` works without: an image's pip steps become a virtual environment.",
    )


async def _problem(name: str, path: str) -> str:
    # Docker's client prints its own half and then fails for want of the daemon; the others are the engine.
    asked = ["version", "--format", "{{.Server.Version}}"] if name == "docker" else ["info"]
    try:
        await command.run([path, *asked], timeout=PROBE_SECONDS)
    except command.CommandFailed as failure:
        return failure.lines[-1].strip().partition(". ")[0].rstrip(".") if failure.lines else failure.reason
    return ""


def tag_of(image: Image) -> str:
    """The name under which an author's image is kept; builders take small letters only."""
    return f"chutes/{image.username}/{image.name}".lower() + f":{image.tag}"


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


async def build(program: Program, image: Image, on_line: OnLine, context: Context | None = None) -> Built:
    """Build an author's image, with the files that it adds and no others.

    Raises:
        ContainerError: the build failed; its last lines were given to `on_line`.
    """
    context = gather(image.added) if context is None else context
    digest = context.digest(str(image))
    with tempfile.TemporaryDirectory(prefix="chutes-build-") as made:
        (place := Path(made) / "context").mkdir()
        await asyncio.to_thread(context.write, place)
        return await _build(program, tag_of(image), f"{image}\n", place, digest, on_line)


async def built(program: Program, image: Image) -> Built | None:
    """The author's image, if it is there and was made of what the image says now."""
    found = await inspect(program, tag_of(image))
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
        tag = "chutes-run/" + reference.removeprefix("chutes/").replace("@sha256:", ":").replace(
            "localhost/", ""
        )
        there = await inspect(program, tag)
        if there is not None and there.digest == digest:
            return there
        try:
            return await _build(program, tag, text, place, digest, on_line)
        except ContainerError as error:
            raise ContainerError(
                error.message,
                "The image's python3 installs chutes: it must be 3.11 or newer and have pip. Add "
                '.with_python("3.12.7") to the Image, or start from an image that has it.',
            ) from None


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


def _failed(what: str, failure: command.CommandFailed) -> ContainerError:
    last = failure.lines[-1].strip() if failure.lines else ""
    return ContainerError(
        f"{what} ({failure.reason}){': ' + last if last else ''}", "Mend the step that failed."
    )


def run_command(program: Program, container: Container) -> list[str]:
    """The command line of an instance in a container: to be started as an engine is, under a minder.

    Its working directory must be the instance's place. The container shares the machine's network, so that
    the instance is reached on its loopback port, and ends with whoever started it (see `contained`).
    """
    home = [f"--label={HOME}={container.home}"]
    shown = [
        f"--volume={mount.path}:{mount.at or mount.path}{'' if mount.writable else ':ro'}"
        for mount in container.mounts
    ]
    return [
        *(sys.executable, "-I", "-S", contained.__file__, "--pass", ",".join(container.variables)),
        *("--name", container.name, "--", program.path, "run", "--rm", "--interactive", "--network=host"),
        *("--pull=never", f"--name={container.name}", *home, f"--shm-size={SHARED_MEMORY}"),
        *_gpus(program, container.gpus),
        # The author's own files are mounted: relabelling them for SELinux would change them for everybody.
        *(["--security-opt=label=disable"] if program.name == "podman" else []),
        *(*shown, f"--workdir={container.workdir}", "--entrypoint=python3", container.image),
        *(f"{INSIDE}/{LIFELINE.name}", f"{ENDING_SECONDS:g}", *container.command),
    ]


def _gpus(program: Program, gpus: Sequence[int]) -> list[str]:
    if not gpus:
        return []
    if program.name == "podman":
        return [f"--device=nvidia.com/gpu={number}" for number in gpus]
    # Docker reads the value as a line of CSV: the quotes keep the numbers in one field.
    return [f'--gpus="device={",".join(map(str, gpus))}"']


def passed(variables: Mapping[str, str]) -> list[str]:
    """Names of what goes into a container: a device list would count its devices anew."""
    return sorted(name for name in variables if name not in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"))
