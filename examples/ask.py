"""Ask a deployed model one question over plain HTTP: no SDK, nothing to install.

python examples/ask.py "What is the capital of France?"

CHUTES_URL (default http://127.0.0.1:8000/v1) says where, CHUTES_API_KEY who asks, MODEL which chute
(default: the newest that is ready).
"""

import json
import os
import sys
import urllib.error
import urllib.request

URL = os.environ.get("CHUTES_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("CHUTES_API_KEY", "")


def call(path: str, body: dict | None = None) -> dict:
    """GET, or POST when there is a body; the answer's JSON. Exits with the server's own words on an error."""
    request = urllib.request.Request(
        URL + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(json.load(error)["error"]["message"])
    except urllib.error.URLError as error:
        sys.exit(f"{URL} does not answer ({error.reason}); `chutes deploy` starts a platform")


def main() -> None:
    question = " ".join(sys.argv[1:]) or "What is the capital of France?"
    ready = sorted((m for m in call("/models")["data"] if m["state"] == "ready"), key=lambda m: m["created"])
    model = os.environ.get("MODEL") or (ready or sys.exit("no chute is ready; see `chutes ps`"))[-1]["id"]
    answer = call(
        "/chat/completions",
        {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 256,
        },
    )
    print(f"{model} is asked: {question}")
    print(answer["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
