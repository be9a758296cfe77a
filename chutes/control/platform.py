"""The platform's one loop: events in, `reconcile.step`, effects out.

Everything here runs on one event loop in one process. Only `_loop` changes the world; everybody else
reads a world that is never modified in place, or submits an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from chutes.config import Config
from chutes.control import bundles, secrets, slots, tracing
from chutes.control import keys as api_keys
from chutes.control import listing as listings
from chutes.control.access_log import AccessLog
from chutes.control.deploying import Draft
from chutes.control.job_runs import JobRuns
from chutes.control.keys import ApiKey, Limits
from chutes.control.listing import Listing
from chutes.control.memory import promised
from chutes.control.metering import Meter
from chutes.control.reconcile import (
    Closing,
    Deleted,
    Deployed,
    Deployment,
    Effect,
    Event,
    Instance,
    Slept,
    Start,
    Tick,
    Woken,
    World,
    step,
)
from chutes.control.routes import current, table
from chutes.control.store import Store
from chutes.control.usage import UsageStore
from chutes.control.workers import Workers
from chutes.engine.lifecycle import Phase
from chutes.engine.process import place_of, private_memory
from chutes.exception import AlreadyExists, DoesNotFit, InvalidSpec, NotFound
from chutes.fleet.base import Fleet, Launch, Report
from chutes.fleet.local import LocalFleet
from chutes.wire import OWN_PATHS, Key, Price, Table, Upstream, UpstreamLost, Usage

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5  # the grain of restart delays


@dataclass
class _Submitted:
    event: Event
    done: asyncio.Future[None] | None


ANYBODY = Key("anybody", "", admin=False)
"""Who a request without a key is where no key is asked for. May call models, not manage the platform."""


class Platform:
    """Deployments, instances, keys and gateway workers of one `CHUTES_HOME`."""

    def __init__(self, config: Config, control: Upstream) -> None:
        """
        Args:
            control: where gateway workers find the control API.
        """
        self.config = config
        self.store = Store(config.database)
        self.fleet: Fleet = LocalFleet(config, self._submit_report)
        self.tracing = tracing.start(config.otel_endpoint)
        self.meter = Meter(
            UsageStore(config.usage_database, config.usage_days, config.usage_rows),
            AccessLog(config.logs / "access.jsonl") if config.access_log else None,
            self.tracing.export if self.tracing else None,
        )
        self.workers = Workers(config, self)
        self.jobs = JobRuns(config, self._secrets_of)
        self.world = World()
        self.listings: dict[str, Listing] = {}
        """By chute id; replaced, never changed."""
        self._control = control
        self._events: asyncio.Queue[_Submitted] = asyncio.Queue()
        self._instance_slots = slots.for_instances()
        self._chute_slots = slots.for_chutes()
        self._key_slots = slots.for_keys()
        self._keys: list[Key] = []
        self._published: Table | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Serve what was deployed before. Raises PortTaken, or ChutesError for an unreadable store."""
        self._read_keys()
        deployments = self.store.deployments()
        self._read_listings(deployments)
        bundles.drop_unused(self.config, self._bundles(deployments))
        self._published = self._table()
        await self.workers.start(self._published)
        for deployment in deployments:
            self._events.put_nowait(_Submitted(Deployed(deployment), None))
        self._tasks = [asyncio.create_task(self._loop()), asyncio.create_task(self._tick())]

    async def close(self) -> None:
        """Stop everything that was started; returns when nothing of it is left."""
        # The gateway first: while it finishes what is in flight, the instances must still be there.
        await self.workers.close()
        if self._tasks:
            await self.submit(Closing())
        await asyncio.gather(self.fleet.close(), self.jobs.close())
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        # Workers have ended and said all that they had to say: what came last is written here.
        await asyncio.to_thread(self.meter.close)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        self.store.close()

    # What others ask of the platform -------------------------------------------------------------

    async def deploy(self, draft: Draft) -> Deployment:
        """Make a draft the version that should run. The running version again only restarts a failed one."""
        known = self.world.deployments.get(draft.spec.uid)
        for other in self.world.deployments.values():
            # Clients know a chute by its name alone: a second one would get some of the first one's requests.
            if other.chute_id != draft.spec.uid and other.spec.name.lower() == draft.spec.name.lower():
                raise AlreadyExists(
                    f"{other.spec.name!r} is deployed already, by user {other.spec.username!r}.",
                    f"`chutes delete {other.spec.name}` first, or give this chute another name.",
                )
        if draft.spec.engine is None:
            bundles.require(self.config, draft.spec)
        deployment = draft.deployment(known.created if known else time.time())
        self.store.save_deployment(deployment)
        self._read_listings([deployment])
        await self.submit(Deployed(deployment))
        bundles.drop_unused(self.config, self._bundles(self.world.deployments.values()))
        log.info("deployed %s version %s", deployment.spec.name, deployment.version)
        return deployment

    async def delete(self, name: str) -> Deployment:
        deployment = self.find(name)
        self.store.delete_deployment(deployment.chute_id)
        self.jobs.cancel_of(deployment.chute_id)
        await self.submit(Deleted(deployment.chute_id))
        bundles.drop_unused(self.config, self._bundles(self.world.deployments.values()))
        self.listings = {id_: known for id_, known in self.listings.items() if id_ != deployment.chute_id}
        log.info("deleted %s", deployment.spec.name)
        return deployment

    async def sleep(self, name: str) -> Deployment:
        """Give the devices of a chute back until somebody asks for it."""
        deployment = self.find(name)
        await self.submit(Slept(deployment.chute_id))
        log.info("%s sleeps until it is asked for", deployment.spec.name)
        return deployment

    async def wake_up(self, name: str) -> Deployment:
        """Start a chute that sleeps, before anybody asks for it."""
        deployment = self.find(name)
        await self.submit(Woken(deployment.chute_id))
        return deployment

    def create_key(
        self, name: str, admin: bool, chutes: list[str] | None, limits: Limits | None = None
    ) -> tuple[ApiKey, str]:
        """Returns the stored key and its text, which exists nowhere else."""
        ids = None if chutes is None else [self.find(chute).chute_id for chute in chutes]
        key, text = api_keys.create(self.config.username, name, time.time(), admin, ids, limits)
        if key.counted and not self._key_slots.left:
            raise DoesNotFit(
                "There are as many keys with limits as the gateway can count.",
                "Delete some, or make one without limits per minute and concurrency.",
            )
        self.store.save_key(key)
        self._keys_changed()
        return key, text

    def delete_key(self, name: str) -> ApiKey:
        """Takes effect in every worker as soon as the new table reaches it, milliseconds later."""
        for key in self.store.api_keys():
            if name in (key.name, key.api_key_id):
                self.store.delete_key(key.api_key_id)
                self._keys_changed()
                return key
        raise NotFound(f"There is no API key {name!r}.", "`chutes keys list` shows them.")

    def _secrets_of(self, deployment: Deployment) -> dict[str, str]:
        return secrets.variables(self.store.secrets(), deployment.chute_id, deployment.spec.name)

    def _bundles(self, deployments: Iterable[Deployment]) -> set[str]:
        kept = [*deployments, *self.world.proven.values()]
        return {deployment.spec.bundle for deployment in kept} | self.jobs.bundles()

    def set_price(self, name: str, price: Price | None) -> Deployment:
        """What requests cost from now on; None: nothing. Stays when another version is deployed."""
        deployment = self.find(name)
        self.store.save_price(deployment.chute_id, price)
        self._listings_changed()
        return deployment

    def set_alias(self, text: str, name: str) -> tuple[str, Deployment]:
        """Make requests for an alias go to a chute; one that is there already is turned to this one."""
        alias, deployment = listings.alias(text), self.find(name)
        for other in self.world.deployments.values():
            if alias in (other.spec.name.lower(), other.chute_id):
                raise AlreadyExists(f"{alias!r} is a chute's own name already.", "Choose another alias.")
        known = self.store.aliases()
        if alias not in known and len(known) >= listings.MAX_ALIASES:
            raise InvalidSpec(f"There are {len(known)} aliases already.", "`chutes alias delete` some.")
        self.store.save_alias(alias, deployment.chute_id)
        self._listings_changed()
        return alias, deployment

    def delete_alias(self, text: str) -> None:
        if text.lower() not in self.store.aliases():
            raise NotFound(f"There is no alias {text!r}.", "`chutes alias list` shows them.")
        self.store.delete_alias(text.lower())
        self._listings_changed()

    def find(self, name: str) -> Deployment:
        """A deployment by chute id, or by name with or without regard to case."""
        deployments = self.world.deployments.values()
        for matches in (
            lambda d: d.chute_id == name or d.spec.name == name,
            lambda d: d.spec.name.lower() == name.lower(),
        ):
            for deployment in deployments:
                if matches(deployment):
                    return deployment
        names = ", ".join(d.spec.name for d in deployments) or "nothing is deployed"
        raise NotFound(f"There is no chute {name!r}.", f"`chutes ps` shows them ({names}).")

    def gpus_of_others(self, chute_id: str) -> set[int]:
        """GPUs that chutes other than this one were given, or would have again."""
        known = (*self.world.deployments.items(), *self.world.proven.items())
        others = (d for id_, d in known if id_ != chute_id)
        return {gpu for deployment in others for gpu in deployment.plan.gpus}

    def memory_promised(self, chute_id: str) -> int:
        """See `memory.promised`. Blocking: looks at processes."""
        home = self.config.home
        return promised(self.world, chute_id, lambda instance: private_memory(place_of(home, instance)))

    def current(self, deployment: Deployment) -> Instance | None:
        return current(deployment, self.world.of(deployment.chute_id))

    async def submit(self, event: Event) -> None:
        """Have an event taken in; returns once the world shows it."""
        done = asyncio.get_running_loop().create_future()
        self._events.put_nowait(_Submitted(event, done))
        await done

    # The loop ------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        while True:
            submitted = await self._events.get()
            try:
                before = self.world
                self.world, effects = step(before, submitted.event, time.time(), _new_id)
                self._log_phases(before)
                for effect in effects:
                    self._carry_out(effect)
                self._publish()
                self._keep_undone(before)
            except Exception:
                # A fault in one event must not end the loop that everything depends on.
                log.exception("event %s was not taken in", type(submitted.event).__name__)
            finally:
                if submitted.done is not None and not submitted.done.done():
                    submitted.done.set_result(None)

    def _keep_undone(self, before: World) -> None:
        for id_, version in self.world.undone.items():
            if before.undone.get(id_) == version:
                continue
            back = self.world.deployments[id_]
            log.error("%s: version %s failed; back to %s", back.spec.name, version, back.version)
            # A deploy or a deletion that has been stored, but not been taken in yet, has the last word.
            if any(kept.chute_id == id_ and kept.version == version for kept in self.store.deployments()):
                self.store.save_deployment(back)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._events.put_nowait(_Submitted(Tick(), None))

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Start):
            deployment = effect.deployment
            names = (deployment.spec.name, deployment.chute_id)
            self.fleet.start(
                Launch(
                    effect.instance_id,
                    deployment.spec,
                    deployment.source,
                    deployment.plan,
                    names,
                    self._secrets_of(deployment),
                )
            )
        else:
            self.fleet.stop(effect.instance_id)

    def _publish(self) -> None:
        new = self._table()
        if new != self._published:
            self._published = new
            self.workers.publish(new)

    def _table(self) -> Table:
        # A number is kept until nothing of the instance is left: workers may still be counting on it.
        self._instance_slots.keep(i.id for i in self.world.instances.values() if not i.phase.over)
        self._chute_slots.keep(self.world.deployments)
        taken = {**self._instance_slots.of, **self._chute_slots.of}
        anonymous = ANYBODY if self.config.no_auth else None
        return table(self.world, self._keys, self._control, self.listings, taken, anonymous)

    def slot_of(self, instance_id: str) -> int | None:
        """Where the board counts an instance's requests."""
        return self._instance_slots.of.get(instance_id)

    def queue_slot_of(self, chute_id: str) -> int | None:
        """Where the board counts those who wait for a chute."""
        return self._chute_slots.of.get(chute_id)

    def _keys_changed(self) -> None:
        self._read_keys()
        self._publish()

    def _read_keys(self) -> None:
        stored = self.store.api_keys()
        self._key_slots.keep(key.api_key_id for key in stored if key.counted)
        self._keys = [key.for_gateway(self._key_slots.of.get(key.api_key_id)) for key in stored]
        self.meter.know({}, {key.api_key_id: key.name for key in stored}, self.meter.prices)

    def _listings_changed(self) -> None:
        self._read_listings(list(self.world.deployments.values()))
        self._publish()

    def _read_listings(self, deployments: list[Deployment]) -> None:
        """Slugs, prices and aliases of these; one that has no slug yet gets one."""
        known, prices = self.store.slugs(), self.store.prices()
        aliases: dict[str, list[str]] = {}
        for alias, chute_id in self.store.aliases().items():
            aliases.setdefault(chute_id, []).append(alias)
        found: dict[str, Listing] = {}
        for deployment in deployments:
            id_, spec = deployment.chute_id, deployment.spec
            if id_ not in known:
                known[id_] = listings.slug(spec.username, spec.name, [*known.values(), *OWN_PATHS])
                self.store.save_slug(id_, known[id_])
            found[id_] = Listing(known[id_], prices.get(id_, Price()), aliases.get(id_, []))
        self.listings = {**self.listings, **found}
        self.meter.know({d.chute_id: d.spec.name for d in deployments}, {}, prices)

    def _submit_report(self, report: Report) -> None:
        self._events.put_nowait(_Submitted(report, None))

    # What gateway workers say ---------------------------------------------------------------------

    def upstream_lost(self, lost: UpstreamLost) -> None:
        # The fleet watches the process itself and knows the reason; this only leaves a trace.
        log.warning("instance %s broke off: %s", lost.instance_id, lost.error)

    def wake(self, chute_id: str) -> None:
        if chute_id in self.world.asleep:  # workers may all say so, and again before they see a new table
            self.meter.woke(chute_id)
            self._events.put_nowait(_Submitted(Woken(chute_id), None))

    def usage(self, message: bytes | Usage) -> None:
        self.meter.take(message)

    def _log_phases(self, before: World) -> None:
        for instance in self.world.instances.values():
            old = before.instances.get(instance.id)
            if old is None or old.phase != instance.phase:
                name = self._name_of(instance.chute_id)
                why = f": {instance.reason.summary}" if instance.reason else ""
                level = logging.ERROR if instance.phase == Phase.FAILED else logging.INFO
                log.log(level, "%s instance %s is %s%s", name, instance.id, instance.phase, why)

    def _name_of(self, chute_id: str) -> str:
        deployment = self.world.deployments.get(chute_id)
        return deployment.spec.name if deployment else chute_id


def _new_id() -> str:
    return uuid.uuid4().hex[:12]
