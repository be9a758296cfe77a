"""Functions of your own as HTTP endpoints: JSON, a stream, a job.

Once it is deployed, `GET /{slug}/docs` shows them (`chutes ps` has the slug).
"""

import asyncio
from pathlib import Path

from pydantic import BaseModel, Field

from chutes.chute import Chute, NodeSelector
from chutes.image import Image

# What the code runs in: by default Python 3.12. Where docker or podman works it is built (`chutes build`);
# where none does its pip steps become a virtual environment, and `chutes deploy --dry-run` tells the rest.
image = (
    Image(username="USERNAME", name="words", tag="0.1")
    # .from_base("nvidia/cuda:12.8.1-devel-ubuntu24.04")
    # .run_command("pip install torch==2.13.0")
    # .add("data", "/app/data")
    .with_env("GREETING", "Good day")
)

chute = Chute(
    username="USERNAME",
    name="words",
    tagline="Counts words",
    image=image,
    # No GPU is used by this one; a chute that wants one says what it needs here.
    node_selector=NodeSelector(),
    # Calls that one instance takes at once.
    concurrency=4,
)


# Import what is heavy in here, not above: this file is also loaded where you type `chutes deploy`.
# Keep models and data in self, but no locks, queues or sessions of asyncio: they belong to the event loop
# that they were made in, and each call of a cord has one of its own.
@chute.on_startup()
async def load(self):
    self.stop_words = {"a", "an", "and", "of", "the"}


# What comes in is checked against this; a mistake is answered with 400 and the field's name.
class Text(BaseModel):
    text: str = Field(min_length=1, max_length=100_000)
    skip_common: bool = False


@chute.cord(public_api_path="/count", public_api_method="POST")
async def count(self, args: Text) -> dict[str, int]:
    """Count the words of a text."""
    words = args.text.lower().split()
    common = self.stop_words if args.skip_common else set()
    return {word: words.count(word) for word in sorted(set(words) - common)}


# A generator streams: each item is sent as soon as it is there.
@chute.cord(public_api_path="/words", stream=True, output_content_type="text/event-stream")
async def words(self, args: Text):
    """The words of a text, one after another."""
    for word in args.text.split():
        await asyncio.sleep(0.1)
        yield f"data: {word}\n\n"


# A job runs by itself until it is done; files in output_dir are kept and can be downloaded.
@chute.job(timeout=600)
async def report(self, **job_data) -> dict[str, str]:
    """Write a file."""
    path = Path(job_data["output_dir"]) / "report.txt"
    path.write_text(f"{job_data.get('title', 'no title')}\n")
    return {"written": path.name}
