"""`Chute`: a FastAPI app that also says how it is to be deployed."""

from __future__ import annotations

import inspect
import logging
import os
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from chutes.chute.check import check_deployable
from chutes.chute.cord import Cord
from chutes.chute.job import Job
from chutes.chute.node_selector import NodeSelector
from chutes.chute.passthrough import Passthrough
from chutes.chute.runtime import UserCode
from chutes.chute.serving import Observe, endpoints
from chutes.chute.spec import ChuteSpec, EngineSpec, uid_of
from chutes.image import Image
from chutes.util.context import is_remote

log = logging.getLogger(__name__)

if is_remote():
    # Inside an instance a proxy must never see what goes between the cords and the engine beside them.
    _direct = ["localhost", "127.0.0.1", *filter(None, os.environ.get("NO_PROXY", "").split(","))]
    os.environ["NO_PROXY"] = ",".join(dict.fromkeys(_direct))

Hook = Callable[[Any], Any]


class NotEnforcedWarning(UserWarning):
    """An option of the published platform that is accepted here and changes nothing."""


_NOT_ENFORCED = {
    "tee": "tee: no trusted execution environment, memory is not encrypted and nothing is attested",
    "encrypted_fs": "encrypted_fs: files are written to the host's disk as they are",
    "lock_modules": "lock_modules: Python modules can be imported and changed after start-up",
}


class Chute(FastAPI):
    """A model or a set of functions, the hardware it wants and how it scales.

    Being a FastAPI app it takes routers and middleware as one. State is attached in a startup hook
    (`self.model = ...`) and read in cords through `self`.

    Construction checks nothing that a published chute file may get away with; `to_spec` checks all.

    Args:
        username: owner.
        name: unique per owner; for a model, usually its hub id.
        image: an `Image`, or the name of an image that exists.
        tagline: one line about it.
        readme: Markdown about it.
        standard_template: set by template builders.
        revision: commit of the model's repository.
        node_selector: hardware of one instance; default: one GPU of 16 GB.
        concurrency: requests one instance takes at once.
        max_instances: most instances to scale to, 1 to 100.
        shutdown_after_seconds: idle time after which the last instance stops, 60 to 604800.
        scaling_threshold: share of all instances' concurrency in use above which one is added, 0 to 1.
        allow_external_egress: whether instances may reach the internet once started.
        encrypted_fs: accepted; not enforced here.
        passthrough_headers: sent with every relayed request; may be filled in a startup hook.
        tee: accepted; not enforced here.
        lock_modules: accepted; not enforced here.
        kwargs: go to FastAPI.
    """

    def __init__(
        self,
        username: str,
        name: str,
        image: str | Image,
        tagline: str = "",
        readme: str = "",
        standard_template: str | None = None,
        revision: str | None = None,
        node_selector: NodeSelector | None = None,
        concurrency: int = 1,
        max_instances: int = 1,
        shutdown_after_seconds: int = 300,
        scaling_threshold: float = 0.75,
        allow_external_egress: bool = False,
        encrypted_fs: bool = False,
        passthrough_headers: dict[str, str] | None = None,  # published: one dict shared by all chutes
        tee: bool = False,
        lock_modules: bool | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs = {"title": name, "docs_url": None, "redoc_url": None, **kwargs}
        super().__init__(**kwargs)
        self._username, self._name, self._image = username, name, image
        self._tagline, self._readme, self._standard_template = tagline, readme, standard_template
        self._uid = uid_of(username, name)
        self._node_selector = NodeSelector() if node_selector is None else node_selector
        self.revision = revision
        self.concurrency = concurrency
        self.max_instances = max_instances
        self.shutdown_after_seconds = shutdown_after_seconds
        self.scaling_threshold = scaling_threshold
        self.allow_external_egress = allow_external_egress
        self.encrypted_fs = encrypted_fs
        self.tee = tee
        self.lock_modules = lock_modules
        self.passthrough_headers: dict[str, str] = dict(passthrough_headers or {})
        self.passthrough_ssl_context: ssl.SSLContext | None = None
        self.passthrough_port: int | None = None
        """Port of the local server for passthrough cords that name none; None means 8000."""
        self.engine: EngineSpec | None = None
        """The platform's model server behind this chute. A plain attribute beside `_declared_engine`,
        because custom chutes keep an object of their own in `self.engine`."""
        self._declared_engine: EngineSpec | None = None
        self._cords: list[Cord] = []
        self._jobs: list[Job] = []
        self._startup_hooks: list[tuple[int, Hook]] = []
        self._shutdown_hooks: list[tuple[int, Hook]] = []
        self._user_code: UserCode | None = None
        self._relay = Passthrough()
        self._initialized = self._needs_shutdown = False
        self._calls_at = ""
        self._observe: Observe | None = None
        self.stage = ""
        """What its start or its end is at: the hook that runs, for whoever waits for it."""
        self.router.lifespan_context = self._around(self.router.lifespan_context)
        self._warn_not_enforced()

    @property
    def username(self) -> str:
        return self._username

    @property
    def name(self) -> str:
        return self._name

    @property
    def readme(self) -> str:
        return self._readme

    @property
    def tagline(self) -> str:
        return self._tagline

    @property
    def uid(self) -> str:
        """Stable id: UUID5 of owner and name."""
        return self._uid

    @property
    def image(self) -> str | Image:
        return self._image

    @property
    def cords(self) -> list[Cord]:
        return self._cords

    @property
    def jobs(self) -> list[Job]:
        return self._jobs

    @property
    def node_selector(self) -> NodeSelector:
        return self._node_selector

    @property
    def standard_template(self) -> str | None:
        return self._standard_template

    @property
    def engine_spec(self) -> EngineSpec | None:
        """The model server that the platform runs behind this chute; None for an author's own cords."""
        return self._declared_engine

    def serve_with(self, engine: EngineSpec) -> None:
        """Declare that the platform runs `engine` and relays to it. For template builders."""
        self.engine = self._declared_engine = engine

    def on_startup(self, priority: int = 50) -> Callable[[Hook], Hook]:
        """Register `hook(chute)`, sync or async, to run before the first request.

        Lower priorities run first, equal ones in order of registration. Customary bands: 0-20 early,
        30-70 normal, 80-100 late.
        """
        return _appender(self._startup_hooks, priority)

    def on_shutdown(self, priority: int = 50) -> Callable[[Hook], Hook]:
        """Register `hook(chute)`, sync or async, to run after the last request; order as `on_startup`."""
        return _appender(self._shutdown_hooks, priority)

    def cord(self, **kwargs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a function callable over HTTP. Options: see `Cord`."""
        return Cord(self, **kwargs)

    def job(self, **kwargs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a function a job. Options: see `Job`."""
        return Job(self, **kwargs)

    def serve_as_instance(self, calls_at: str, observe: Observe) -> None:
        """Before `initialize`: answer calls from Python below the path `calls_at`, so that internal and
        public paths cannot collide, and tell `observe` of each call of a cord."""
        self._calls_at, self._observe = calls_at, observe

    async def initialize(self) -> None:
        """Run the startup hooks and add the cords' routes; nothing outside an instance.

        Each cord answers at its internal path (POST) and at its public path and method. Where those of
        two cords collide the internal one wins, or with `CHUTES_DEV_MODE=true` the public one.
        A second call does nothing. A hook's exception passes through; `shutdown` then still cleans up.
        """
        if not is_remote() or self._initialized:
            return
        self._needs_shutdown = True
        for _, hook in sorted(self._startup_hooks, key=lambda entry: entry[0]):
            self.stage = f"startup hook {_called(hook)!r}"
            await _run(hook, self)
        self.stage = ""
        self._user_code = UserCode(max(1, self.concurrency))
        public = os.environ.get("CHUTES_DEV_MODE", "").lower() == "true"
        for method, path, endpoint in endpoints(
            self, self._cords, public, self._user_code, self._relay, self._calls_at, self._observe
        ):
            self.add_api_route(path, endpoint, methods=[method], response_model=None)
        self._initialized = True

    async def shutdown(self) -> None:
        """Run the shutdown hooks, once, if `initialize` ran. A hook that raises is logged; the next runs."""
        if not self._needs_shutdown:
            return
        self._needs_shutdown = False
        failed_in = self.stage  # of a start that failed: still the answer to where, when all is cleaned up
        for _, hook in sorted(self._shutdown_hooks, key=lambda entry: entry[0]):
            self.stage = f"shutdown hook {_called(hook)!r}"
            try:
                await _run(hook, self)
            except Exception:
                log.exception("%s failed", self.stage)
        self.stage = failed_in
        if self._user_code is not None:
            self._user_code.close()
        await self._relay.close()

    def to_spec(self, ref: str = "", code: str = "") -> ChuteSpec:
        """This chute as data.

        Args:
            ref: the reference it was loaded from.
            code: source text of its file.

        Raises:
            InvalidSpec: a field cannot be served; names the field, its value, the range and the fix.
        """
        check_deployable(self)
        image = self._image.reference if isinstance(self._image, Image) else self._image
        return ChuteSpec(
            uid=self._uid,
            username=self._username,
            name=self._name,
            tagline=self._tagline,
            readme=self._readme,
            standard_template=self._standard_template,
            revision=self.revision,
            image=image or "",
            dockerfile=str(self._image) if isinstance(self._image, Image) else "",
            node_selector=self._node_selector,
            concurrency=self.concurrency,
            max_instances=self.max_instances,
            shutdown_after_seconds=self.shutdown_after_seconds,
            scaling_threshold=self.scaling_threshold,
            allow_external_egress=self.allow_external_egress,
            engine=self._declared_engine,
            hooks=[_called(hook) for _, hook in (*self._startup_hooks, *self._shutdown_hooks)],
            cords=[cord.to_spec() for cord in self._cords],
            jobs=[job.to_spec() for job in self._jobs],
            ref=ref,
            code=code,
        )

    def _register(self, item: Cord | Job) -> None:
        (self._cords if isinstance(item, Cord) else self._jobs).append(item)  # type: ignore[arg-type]

    def _around(self, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The app's own lifespan (whatever the author passed to FastAPI) between our start and stop."""

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            try:
                await self.initialize()
                async with inner(app) as state:
                    yield state
            finally:
                await self.shutdown()

        return lifespan

    def _warn_not_enforced(self) -> None:
        asked = [text for field, text in _NOT_ENFORCED.items() if getattr(self, field)]
        if asked:
            warnings.warn(
                f"Chute {self._name!r} asks for what is not enforced on your own machines: "
                f"{'; '.join(asked)}.",
                NotEnforcedWarning,
                stacklevel=3,
            )


def _appender(hooks: list[tuple[int, Hook]], priority: int) -> Callable[[Hook], Hook]:
    def register(hook: Hook) -> Hook:
        hooks.append((priority, hook))
        return hook

    return register


def _called(hook: Hook) -> str:
    return getattr(hook, "__name__", None) or repr(hook)


async def _run(hook: Hook, chute: Chute) -> None:
    result = hook(chute)
    if inspect.isawaitable(result):
        await result
