"""Every example of LiteLLM's page on chutes, verbatim, against real vLLM on the CPU.

LiteLLM runs in an environment of its own, as its proxy wants other versions than we do. Its `chutes/`
provider has no setting for the address, takes `thinking` for none of its models, and tools and
`reasoning_effort` only for models that it is told of. `PRELUDE` makes up for that; then an example runs as it
is written.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway import programs
from tests.e2e.conftest import DEPLOY_SECONDS, MODEL
from tests.integration.platform_kit import PlatformKit, port_for_test, until

PAGE = (Path(__file__).parents[1] / "fixtures" / "litellm" / "chutes.md").read_text()
NAMES = (
    "deepseek-ai/DeepSeek-V3.2-TEE",
    "deepseek-ai/DeepSeek-V3.1-TEE",
    "XiaomiMiMo/MiMo-V2-Flash",
    "Qwen/Qwen3-32B",
)
"""The page's models; here they are all the one small model."""
PROXY_KEY = "sk-of-the-proxy"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Tokyo"}}\n</tool_call>'

PRELUDE = """
import json, litellm
litellm.suppress_debug_info = True
told = dict(litellm_provider="chutes", mode="chat", supports_function_calling=True, supports_reasoning=True)
litellm.register_model({"chutes/" + name: told for name in NAMES})
ask = litellm.completion

def completion(**asked):
    extra = {"return_token_ids": True, **EXTRA, **asked.pop("extra_body", {})}
    if "thinking" in asked:
        extra["thinking"] = asked.pop("thinking")
    return ask(api_base=BASE, temperature=0, max_tokens=96, extra_body=extra, **asked)

litellm.completion = completion
"""
"""What the page leaves out. That answers are short and always the same is for the tests."""

pytestmark = pytest.mark.timeout(DEPLOY_SECONDS + 600)  # the first test waits for two environments


def block(after: str) -> str:
    """The first block of code after a text of the page."""
    found = re.search(r"```[^\n]*\n(.*?)```", PAGE[PAGE.index(after) :], re.DOTALL)
    assert found is not None
    return found[1]


class Script:
    """Runs Python where LiteLLM is installed."""

    def __init__(self, kit: PlatformKit, key: str, bin_: Path) -> None:
        self.kit, self.key, self.bin = kit, key, bin_
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "CHUTES_API_KEY": key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches prices when it is imported
        }

    def run(self, code: str, **more: str) -> str:
        """What it prints."""
        done = subprocess.run(
            [self.bin / "python", "-c", code.replace("your-chutes-api-key", self.key)],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def example(self, after: str, then: str = "", **extra: Any) -> str:
        """Run the page's example after a heading, with `extra` in the body, and `then` after it."""
        values = f"NAMES, BASE, EXTRA = {NAMES!r}, {self.kit.url + '/v1'!r}, {extra!r}\n"
        return self.run(values + PRELUDE + block(after) + "\n" + then)

    def prompt(self, tokens: list[int]) -> str:
        """The text that the engine made of messages."""
        status, body = self.kit.ask(self.key, "/detokenize", {"model": MODEL, "tokens": tokens})
        assert status == 200, body
        return json.loads(body)["prompt"]


@pytest.fixture(scope="module")
def script(kit: PlatformKit) -> Script:
    for name in NAMES:
        kit.run("alias", "set", name, MODEL)
    return Script(kit, kit.key("mission"), programs.installed("litellm[proxy]", "litellm").parent)


def test_non_streaming(script: Script) -> None:
    assert script.example("### Non-streaming") == "The capital of France is Paris.\n"


def test_streaming(script: Script) -> None:
    printed = script.example("### Streaming", "print(); print(chunk.choices[0].finish_reason)")
    poem, finish = printed.rsplit("\n", 2)[:2]
    assert len(poem.split()) > 20
    assert finish == "length"


TELL = "\nprint(json.dumps(response.prompt_token_ids))"


def test_thinking(script: Script) -> None:
    said, tokens = script.example("### Using the `thinking`", TELL).rsplit("\n", 2)[:2]
    assert said
    prompt = script.prompt(json.loads(tokens))
    assert "Thinking is on." in prompt
    assert "What is 1234 * 5678?" in prompt


def test_reasoning_effort(script: Script) -> None:
    said, tokens = script.example("### Using `reasoning_effort`", TELL).rsplit("\n", 2)[:2]
    assert said
    prompt = script.prompt(json.loads(tokens))
    assert "Thinking is on." in prompt
    assert "Analyze the economic impact of AI" in prompt


ON, OFF = "Thinking is on.", "Thinking is off."
THINKING: list[tuple[dict[str, Any], str]] = [
    ({"thinking": {"type": "enabled"}}, ON),
    ({"thinking": {"type": "disabled"}}, OFF),
    ({"thinking": True}, ON),
    ({"thinking": False}, OFF),
    *[({"reasoning_effort": effort}, ON) for effort in ("low", "medium", "high")],
    *[({"reasoning_effort": effort}, OFF) for effort in ("none", "minimal")],
]
"""The page's table of what they map to."""


def test_the_table_of_thinking(script: Script) -> None:
    asks = f"""
for asked in {[asked for asked, _ in THINKING]!r}:
    response = litellm.completion(model="chutes/deepseek-ai/DeepSeek-V3.2-TEE", messages=messages, **asked)
    print(json.dumps(response.prompt_token_ids))
"""
    _, *lines = script.example("### Non-streaming", asks, max_completion_tokens=1).splitlines()
    prompts = [script.prompt(json.loads(line)) for line in lines]
    assert len(prompts) == len(THINKING)
    for prompt, (asked, wanted) in zip(prompts, THINKING, strict=True):
        assert wanted in prompt, (asked, prompt)


def test_function_calling(script: Script) -> None:
    printed = script.example(
        "## Function Calling",
        "print(response.choices[0].finish_reason)" + TELL,
        # A model of this size would rather talk: its words are given, the parser's work is not.
        structured_outputs={"choice": [CALL]},
    )
    *lines, tokens = printed.splitlines()
    assert lines == ["Function called: get_weather", 'Arguments: {"location": "Tokyo"}', "tool_calls"]
    assert "You may call get_weather." in script.prompt(json.loads(tokens))


def test_json_mode(script: Script) -> None:
    assert script.example("## Response Schema") == "{'name': 'John', 'age': 25}\n"


@pytest.fixture(scope="module")
def proxy(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """LiteLLM's proxy with the page's config.yaml; its port. `api_base` is what LiteLLM cannot do without."""
    directory, port = tmp_path_factory.mktemp("proxy"), port_for_test()
    key_line = "      api_key: os.environ/CHUTES_API_KEY\n"
    config = block("### 2. Start the proxy").replace(
        key_line, f"{key_line}      api_base: {script.kit.url}/v1\n"
    )
    assert config.count("api_base") == 2
    (directory / "config.yaml").write_text(config)
    command = block("Then start the proxy:").replace("/path/to", str(directory)).split()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [script.bin / command[0], *command[1:], "--host", "127.0.0.1", "--port", str(port)],
            env={**script.environment, "LITELLM_MASTER_KEY": PROXY_KEY},
            stdout=log,
            stderr=log,
        )

    def alive() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
        except OSError:
            return False
        return True

    try:
        until(alive, 180)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def test_the_proxy_asked_by_litellm(script: Script, proxy: int) -> None:
    """The page's name has no provider; LiteLLM asks its proxy if its environment says so."""
    said = script.run(
        block('<TabItem value="python"'),
        USE_LITELLM_PROXY="True",
        LITELLM_PROXY_API_BASE=f"http://127.0.0.1:{proxy}",
        LITELLM_PROXY_API_KEY=PROXY_KEY,
    )
    assert said.strip()


def test_the_proxy_asked_by_curl(proxy: int) -> None:
    command = block('<TabItem value="curl"').replace("0.0.0.0:4000", f"127.0.0.1:{proxy}")
    command = command.replace("<your-litellm-proxy-key>", PROXY_KEY)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] > 0


def test_the_proxy_asked_by_the_openai_sdk(script: Script, proxy: int) -> None:
    code = block('<TabItem value="openai-sdk"').replace("0.0.0.0:4000", f"127.0.0.1:{proxy}")
    assert script.run(code.replace("your-litellm-proxy-key", PROXY_KEY)).strip()
