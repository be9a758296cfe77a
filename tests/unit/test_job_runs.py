"""Runs of jobs, as a platform finds them on its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from chutes import config as settings
from chutes.config import Config
from chutes.control.job_runs import JobRuns
from chutes.control.jobs import Run, Status


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.setenv("CHUTES_HOME", str(tmp_path / "home"))
    return settings.load()


def recorded(config: Config, directory: str, job_id: str, status: Status) -> Path:
    (place := config.jobs / directory).mkdir(parents=True)
    run = Run(job_id=job_id, chute_id="c", chute="C", method="m", status=status, created_at=1.0)
    (place / "run.json").write_text(run.model_dump_json())
    return place


def test_a_record_that_names_another_directory_is_not_read(config):
    for job_id in ("../../victim", "other", ".."):
        recorded(config, f"at-{len(job_id)}", job_id, Status.RUNNING)
    recorded(config, "good", "good", Status.COMPLETE)
    assert list(JobRuns(config, lambda deployment: {}).runs) == ["good"]
