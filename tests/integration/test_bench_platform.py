"""The benchmark and a platform: the model is deployed, gateway and engine are asked, no key is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import result as results
from tests.integration.platform_kit import NAME, PlatformKit, platform

ROOT = Path(__file__).parents[2]


def bench(kit: PlatformKit, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "--workload", "text", "--no-pictures", *arguments],
        cwd=kit.directory,
        env={**kit.environment, "PYTHONPATH": str(ROOT), "MODEL": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_a_model_is_deployed_and_asked_both_ways(tmp_path: Path) -> None:
    with platform(tmp_path) as kit:
        ref = kit.chute("""--fake '{"finish": "stop"}'""")
        file = tmp_path / "r.json"
        words = ["--chute", ref, "-t", "engine", "-t", "gateway", "-n", "40", "-c", "2", "-o", str(file)]
        done = bench(kit, *words)
        assert done.returncode == 0, done.stderr
        assert "deploying" in done.stderr
        assert kit.instance()["phase"] == "ready"
        assert kit.json("keys", "list") == [], "the run's own key is gone"
        found = results.read(file)
        (phase,) = found.phases
        assert {record.target for record in phase.records} == {"engine", "gateway"}
        assert not [record.message for record in phase.records if record.error]
        assert [target.model for target in found.targets] == [kit.json("ps")[0]["name"]] * 2
        assert found.targets[0].deployment_version == kit.json("ps")[0]["version"]
        assert "--fake" in found.targets[0].arguments
        assert "chutes_engine" not in "".join(phase.samples.series)
        assert phase.samples.series["engine_running_requests"], "the engine was looked at"

        # It runs now: a second run asks it as it is. Asleep, it is woken.
        kit.run("sleep", NAME)
        done = bench(kit, "--model", NAME, "-n", "4", "-c", "1", "-o", str(file))
        assert done.returncode == 0, done.stderr
        assert "waking it" in done.stderr
        assert [target.name for target in results.read(file).targets] == ["gateway"]
