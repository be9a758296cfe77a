"""Runs of jobs as processes: each its own, under a minder, in its chute's environment.

Kept under `Config.jobs`, one directory a run: `run.json` (the record), `log`, and `work/`, all that the job
itself is given, in a container too: `args.json`, `result.json`, `output/`. What lies there is believed as
little as any other input. A run does not survive the platform, its record does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from chutes.chute.spec import RESULT_BYTES, JobSpec
from chutes.config import Config
from chutes.control import jobs
from chutes.control.jobs import File, Run, Status
from chutes.control.reconcile import Deployment
from chutes.control.running import write_private
from chutes.engine import registry
from chutes.engine.command import inherited
from chutes.engine.contained import MOUNTS, meant
from chutes.engine.diagnosis import diagnose
from chutes.engine.process import EngineProcess, free_port, place_of, tail
from chutes.engine.python import environment, unpack_bundle
from chutes.exception import ChutesError, InvalidSpec, NotFound
from chutes.util.waiting import to_the_end

log = logging.getLogger(__name__)

MODULE = "chutes.chute.job_run"
LOG_TAIL_BYTES = 64 << 10

# Beyond startup and timeout a job's process ends itself; this is for one that was stopped or cannot.
LATE_SECONDS = 90.0


class JobRuns:
    """All runs of one home. Belongs to one event loop."""

    def __init__(self, config: Config, secrets_of: Callable[[Deployment], Mapping[str, str]]) -> None:
        self.config = config
        self.runs: dict[str, Run] = {}
        self._secrets_of = secrets_of
        self._deployments: dict[str, Deployment] = {}
        """Of the runs that are not over, as they were when these were asked for."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False
        for path in sorted(config.jobs.glob("*/run.json")):
            try:
                run = Run.model_validate_json(path.read_text())
            except (OSError, ValidationError) as error:
                log.warning("%s is not read: %s", path, error)
                continue
            if run.job_id != path.parent.name:  # directories are made of it, and removed
                log.warning("%s is not read: it calls itself %r", path, run.job_id)
                continue
            self.runs[run.job_id] = run
            if not run.status.over:
                self._save(jobs.lost(run, time.time()))

    def directory(self, job_id: str) -> Path:
        return self.config.jobs / job_id

    def work(self, job_id: str) -> Path:
        """What is the job's own to write of a run's directory."""
        return self.directory(job_id) / "work"

    def find(self, job_id: str) -> Run:
        """Raises NotFound."""
        if (run := self.runs.get(job_id)) is None:
            raise NotFound(f"There is no run {job_id!r} of a job.", "`chutes jobs list` shows them.")
        return run

    def submit(self, deployment: Deployment, name: str, args: dict[str, Any]) -> Run:
        """Take a run; it starts when there is room for it.

        Raises:
            NotFound: the chute has no such job.
            InvalidSpec, DoesNotFit: as `jobs.check`.
        """
        job = _job(deployment, name)
        text = json.dumps(args)
        jobs.check(self.runs.values(), job, args, len(text))
        run = Run(
            job_id=str(uuid.uuid4()),
            chute_id=deployment.chute_id,
            chute=deployment.spec.name,
            method=name,
            args=args,
            created_at=time.time(),
        )
        work = self.work(run.job_id)
        (work / "output").mkdir(parents=True)
        work.parent.chmod(0o700)
        (work / "args.json").write_text(text)
        self._deployments[run.job_id] = deployment
        self._save(run)
        self._start_some()
        return self.runs[run.job_id]

    def cancel(self, job_id: str) -> Run:
        """Ask a run to stop; it is killed if it does not."""
        run = self.find(job_id)
        if run.status.over or run.cancelling:
            return run
        run = self._save(run.model_copy(update={"cancelling": True}))
        if task := self._tasks.get(job_id):
            task.cancel()
        else:
            run = self._save(jobs.ended(run, {"status": "cancelled"}, "", time.time()))
            self._deployments.pop(job_id, None)
        return run

    def cancel_of(self, chute_id: str) -> None:
        for run in list(self.runs.values()):
            if run.chute_id == chute_id and not run.status.over:
                self.cancel(run.job_id)

    def bundles(self) -> set[str]:
        """Snapshots that runs still need."""
        return {deployment.spec.bundle for deployment in self._deployments.values()}

    async def close(self) -> None:
        """End all runs; what they were is marked when the platform is there again."""
        self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _save(self, run: Run) -> Run:
        self.runs[run.job_id] = run
        write_private(self.directory(run.job_id) / "run.json", run.model_dump_json(indent=2))
        return run

    def _start_some(self) -> None:
        for job_id in [] if self._closing else jobs.to_start(self.runs.values()):
            deployment = self._deployments[job_id]
            job = _job(deployment, self.runs[job_id].method)
            taken: set[int] = {
                port["number"] for run in self.runs.values() if not run.status.over for port in run.ports
            }
            ports = []
            for port in job.ports:
                number = free_port(taken)
                taken.add(number)
                ports.append({**port, "number": number})
            run = self.runs[job_id].model_copy(
                update={"status": Status.RUNNING, "started_at": time.time(), "ports": ports}
            )
            self._save(run)
            self._tasks[job_id] = asyncio.create_task(self._run(run, deployment, job), name=f"job {job_id}")

    async def _run(self, run: Run, deployment: Deployment, job: JobSpec) -> None:
        why, late = "", False
        try:
            why, late = await self._live(run, deployment, job)
        except asyncio.CancelledError:
            if self._closing:
                return  # found unfinished, and so lost, by the next platform
        except ChutesError as error:
            why = f"{error.message} {error.fix}"
        except Exception as error:
            log.exception("run %s of job %s failed", run.job_id, run.method)
            why = f"{type(error).__name__}: {error}. This is a fault in chutes: please report it."
        # Whatever fails from here on, and whoever cancels it now: it is over, and others wait for its place.
        ended, _ = await to_the_end(
            asyncio.to_thread(self._surely_ended, self.runs[run.job_id], job, why, late)
        )
        try:
            self._save(ended)
        except OSError:
            log.exception("the end of run %s is not recorded", run.job_id)
        self._tasks.pop(run.job_id, None)
        self._deployments.pop(run.job_id, None)
        for job_id in jobs.to_forget(self.runs.values()):
            del self.runs[job_id]
            await asyncio.to_thread(shutil.rmtree, self.directory(job_id), ignore_errors=True)
        self._start_some()

    async def _live(self, run: Run, deployment: Deployment, job: JobSpec) -> tuple[str, bool]:
        """From environment to end: how the process ended, and whether that was for want of time."""
        spec, plan = deployment.spec, deployment.plan
        engine = registry.of(plan.engine)
        python = await engine.prepare(spec, plan, self.config, lambda what, done, total: None)
        place = place_of(self.config.home, f"job-{run.job_id}")
        await asyncio.to_thread(unpack_bundle, spec, self.config, place)
        directory, work = self.directory(run.job_id), self.work(run.job_id)
        variables = {**self._secrets_of(deployment), **environment(spec)}
        variables[MOUNTS] = str(work)  # for a job in a container
        for port in run.ports:
            # The published names: protocol and the number that was asked for.
            variables[f"CHUTES_PORT_{port['proto'].upper()}_{port['port']}"] = str(port["number"])
        if plan.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, plan.gpus))
            variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        command = [str(python), "-m", MODULE, "--ref", spec.entry, "--job", job.name]
        command += ["--directory", str(work), "--startup-seconds", str(self.config.startup_seconds)]
        variables = {**inherited(), **meant(variables)}
        process = await EngineProcess.start(command, variables, directory / "log", place)
        limit = self.config.startup_seconds + job.timeout + LATE_SECONDS if job.timeout else None
        try:
            async with asyncio.timeout(limit):
                code = await process.wait()
        except TimeoutError:
            return "", True
        finally:
            await process.stop()  # asked first, killed after a grace; nothing to do for one that has ended
        reason = diagnose(tail(directory / "log", LOG_TAIL_BYTES), code, own_code=True)
        return f"{reason.summary} See `chutes jobs logs {run.job_id}`.", False

    def _surely_ended(self, run: Run, job: JobSpec, why: str, late: bool) -> Run:
        """The same as `_ended`, of whatever the job left, names and texts that cannot be recorded too."""
        try:
            ended = self._ended(run, job, why, late)
            ended.model_dump_json()
        except Exception as error:
            log.exception("what run %s of job %s left cannot be read", run.job_id, run.method)
            said = {"status": "error", "detail": f"What the job left cannot be read: {error!r}"}
            return jobs.ended(run, said, "", time.time())
        return ended

    def _ended(self, run: Run, job: JobSpec, why: str, late: bool) -> Run:
        """The run as its process left it. Blocking: looks through its files."""
        work = self.work(run.job_id)
        run = jobs.ended(run, _outcome(work / "result.json"), why, time.time(), late)
        output = work / "output"
        if output.is_symlink():  # whose files they are, nobody knows: none is listed, and none removed
            detail = "The job replaced its output directory by a link: nothing in it is kept."
            return run.model_copy(update={"status": Status.ERROR, "result": None, "detail": detail})
        found = [
            File(path=path.relative_to(output).as_posix(), size=path.lstat().st_size)
            for path in sorted(output.rglob("*"))
            if path.is_file() and not path.is_symlink()
        ]
        kept, left_out = jobs.choose_files(found) if job.upload else ([], [file.path for file in found])
        for name in left_out:
            with contextlib.suppress(OSError):
                (output / name).unlink()
        log.info("run %s of job %s of %s: %s", run.job_id, run.method, run.chute, run.status)
        return run.model_copy(update={"files": kept, "left_out": left_out if job.upload else []})


def _outcome(path: Path) -> dict[str, Any] | None:
    """What a job wrote of its end; None if that is nothing that can be read. A link, a pipe, or more than a
    job writes is not."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > RESULT_BYTES:
                return None
            said = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _job(deployment: Deployment, name: str) -> JobSpec:
    """Raises NotFound or InvalidSpec."""
    spec = deployment.spec
    if spec.engine is not None:
        raise InvalidSpec(f"{spec.name!r} is a template chute: its jobs are not run yet.")
    for job in spec.jobs:
        if job.name == name:
            return job
    names = ", ".join(job.name for job in spec.jobs) or "none"
    raise NotFound(f"{spec.name!r} has no job {name!r}.", f"Its jobs: {names}.")
