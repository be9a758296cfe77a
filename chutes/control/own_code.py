"""A draft of a chute that is its author's own code: no model, no facts, an environment and a snapshot."""

from __future__ import annotations

from collections.abc import Collection

from chutes.chute.spec import ChuteSpec
from chutes.config import Config
from chutes.engine import containers, python
from chutes.exception import InvalidSpec
from chutes.hardware import devices, own_code, profiles
from chutes.hardware.plan import Plan

SSH_PORT = 2202

TAKEN = frozenset({"jobs", "logs", "sleep", "wake"})
"""What the control API answers below `/chutes/{id}/`, where calls from Python go too."""


def plan(spec: ChuteSpec, config: Config, taken: Collection[int]) -> Plan:
    """Devices for one instance.

    Raises:
        InvalidSpec: the chute cannot be served here.
    """
    for cord in spec.cords:
        if (first := cord.path.split("/")[1]) in TAKEN:
            raise InvalidSpec(
                f"Cord {cord.function!r} cannot have the path {cord.path!r}: /chutes/{{id}}/{first} is the "
                "platform's own.",
                f'Give it another: @chute.cord(path="/{cord.function}_it"). Its public_api_path may stay.',
            )
    shelf = profiles.load(profiles.find(config.home, config.profiles))
    return own_code.plan(spec.node_selector, devices.detect(), shelf, taken)


def notes(spec: ChuteSpec, config: Config) -> list[str]:
    """What its code runs in, and what of the chute is not done here. Blocking: asks the container engine."""
    program = containers.chosen(config) if spec.image else None
    if program is not None:
        found = [f"runs in a container of {program.name}: the image {spec.image} is made at the start"]
    else:
        found = list(python.ways(spec.dockerfile).notes)
    if program is None and spec.image and not spec.dockerfile:
        found.append(
            f"image {spec.image!r} is not used: the code runs with the platform's own Python packages"
        )
    if not spec.allow_external_egress:
        found.append("allow_external_egress is off, which is not enforced: the code may reach the network")
    found += [
        f"job {job.name}: no ssh here" for job in spec.jobs if any(p["port"] == SSH_PORT for p in job.ports)
    ]
    return found
