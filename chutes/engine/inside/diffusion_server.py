"""Serves one diffusers pipeline over HTTP; see `drawing`.

    DIFFUSION_API_KEY=KEY python diffusion_server.py --model DIRECTORY --served-model-name NAME --port PORT

Environment:
    DIFFUSION_API_KEY: asked for as a bearer token, but by /health.
    DIFFUSION_SETTINGS: JSON; `pipeline_args` (for from_pretrained), `safety_checker` (keep, off), `defaults`
        (num_inference_steps, guidance_scale), `batch`, `most_waiting`.
    CHUTES_INSTANCE: its last part says in a picture's URL which instance has it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import uvicorn
from drawing.app import Server
from drawing.artist import PipelineArtist, load
from drawing.shelf import Shelf
from drawing.studio import Failed, Studio

DRAIN_SECONDS = 20  # less than the grace that a stop gives the process before it is killed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served-model-name", nargs="+", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--offload", choices=("none", "model"), default="none")
    given = parser.parse_args()
    settings = {**json.loads(os.environ.get("DIFFUSION_SETTINGS") or "{}"), "offload": given.offload}
    try:
        pipeline = load(given.model, settings)
    except Failed as error:
        sys.exit(f"ValueError: {error}")
    artist = PipelineArtist(pipeline, settings)
    skill = artist.skill
    print(f"loaded {skill.name}, which draws {skill.width}x{skill.height}", flush=True)
    studio = Studio(artist, int(settings.get("most_waiting", 32)), int(settings.get("batch", 4)))
    studio.start()
    instance = Path(os.environ.get("CHUTES_INSTANCE", "")).name
    server = Server(studio, artist, given.served_model_name, Shelf(f"{instance}." if instance else ""))
    uvicorn.run(
        server.app(os.environ.get("DIFFUSION_API_KEY", "")),
        host=given.host,
        port=given.port,
        access_log=False,  # /health every few seconds would bury what a person looks for
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


if __name__ == "__main__":
    main()
