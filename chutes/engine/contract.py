"""What the fleet asks of an engine, whichever it is. One module per engine answers; `registry` knows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chutes.chute.spec import ChuteSpec
from chutes.config import Config
from chutes.engine.environment import ensure, is_installed
from chutes.engine.release import EngineRelease, find
from chutes.hardware.plan import Plan

Progress = Callable[[str, int, int], None]
"""(what is being done, done, total); total 0 means unknown"""


@dataclass(frozen=True)
class Endpoint:
    """Where an instance is reached."""

    host: str
    port: int
    api_key: str


@dataclass(frozen=True)
class Start:
    """One instance that is about to be started: all that its command line is made of."""

    spec: ChuteSpec
    plan: Plan
    python: Path
    """The interpreter of its environment, from `Engine.prepare`."""
    directory: Path | None
    """The model's files, from `Engine.adapt`; None for a chute without a model."""
    served_names: tuple[str, ...]
    """Model names that it must answer to; the first is the one it shows."""
    endpoint: Endpoint
    place: Path
    """A directory of its own, there while it runs."""
    startup_seconds: float = 1800.0
    """What an author's own startup may take."""

    @property
    def args(self) -> list[str]:
        """Planner's and author's arguments. The author's come last: where both say something, those count."""
        return [*self.plan.engine_args, *(self.spec.engine.args if self.spec.engine else [])]


class Engine(Protocol):
    """One kind of server. It answers `/health` with 200 once it can serve, and `/v1/models` if it has models.

    Stateless: everything comes in and goes out by arguments.
    """

    async def judge(self, spec: ChuteSpec, plan: Plan, config: Config) -> None:
        """Check what the author set for it, as far as that can be done now without making an environment.

        Raises:
            InvalidSpec: it would not start with that.
        """
        ...

    async def prepare(self, spec: ChuteSpec, plan: Plan, config: Config, progress: Progress) -> Path:
        """The interpreter of the environment that it runs in, made now if there is none.

        Raises:
            EngineEnvironmentError: it cannot be made.
            InvalidSpec: as `judge`, which has been asked again inside.
        """
        ...

    async def adapt(self, python: Path, files: Path, progress: Progress) -> Path:
        """What was fetched, in the form that the engine loads: `files` itself, or what is made of it.

        Raises:
            ModelError: it cannot be made.
        """
        ...

    def command(self, start: Start) -> list[str]:
        """The command line. It holds no secret: `ps` shows it to every user of the machine."""
        ...

    def variables(self, start: Start) -> dict[str, str]:
        """Environment variables, to be added to a clean environment. The instance's key is among them."""
        ...

    def milestone(self, log: str) -> str:
        """How far a starting server is, from its log: one short remark."""
        ...

    async def warm(self, start: Start) -> None:
        """Ask it one known thing, so that only what answers sanely is routed to.

        Raises:
            EngineFailed: no answer, or a wrong one.
        """
        ...


class Released(ABC):
    """What engines have in common whose environments are pinned sets: `release.releases()`."""

    @abstractmethod
    async def check_arguments(
        self, python: Path, release: EngineRelease, args: list[str], cache_dir: Path
    ) -> None:
        """Have the engine's own parser judge the author's arguments; verdicts are kept in `cache_dir`."""

    async def judge(self, spec: ChuteSpec, plan: Plan, config: Config) -> None:
        release = find(plan.engine, plan.accelerator, plan.engine_version)
        environment = is_installed(release, config.engines)
        if environment is not None:
            await self._check(environment.python, release, spec, config)

    async def prepare(self, spec: ChuteSpec, plan: Plan, config: Config, progress: Progress) -> Path:
        release = find(plan.engine, plan.accelerator, plan.engine_version)
        progress(f"environment {release.id}", 0, 0)
        environment = await ensure(
            release,
            config.engines,
            lambda detail, share: progress(
                detail, round((share or 0) * 100), 100 if share is not None else 0
            ),
        )
        await self._check(environment.python, release, spec, config)
        return environment.python

    async def adapt(self, python: Path, files: Path, progress: Progress) -> Path:
        del python, progress
        return files

    async def _check(self, python: Path, release: EngineRelease, spec: ChuteSpec, config: Config) -> None:
        if spec.engine is not None:
            await self.check_arguments(python, release, spec.engine.args, config.cache / "arguments")
