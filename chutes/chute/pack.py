"""A chute together with named handles on its cords."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from chutes.chute.base import Chute


class ChutePack(BaseModel):
    """What template builders return; everything that takes a chute takes a pack of one."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    chute: Chute
