"""price, alias: what a chute costs, and what else it is called."""

from __future__ import annotations

from chutes import config as settings
from chutes.cli import client, output
from chutes.exception import UsageError


def price(
    name: str,
    prompt: float | None,
    completion: float | None,
    cached: float | None,
    free: bool,
    as_json: bool,
) -> None:
    given = [value for value in (prompt, completion, cached) if value is not None]
    if given and (free or prompt is None or completion is None):
        raise UsageError(
            "A price has both its parts, and --free has none.",
            f"chutes price {name} --prompt 0.2 --completion 0.6 (dollars per million tokens)",
        )
    platform, path = client.connect(settings.load()), client.named("prices", name)
    if free:
        answer = platform.call("DELETE", path)
    elif given:
        body = {"prompt": prompt, "completion": completion, "cached": cached}
        answer = platform.call("PUT", path, body)
    else:
        answer = platform.call("GET", path)
    if as_json:
        output.document(answer)
    elif answer["prompt"] or answer["completion"] or answer["cached"]:
        output.say(
            f"{answer['name']}: ${answer['prompt']:g} prompt, ${answer['cached']:g} cached prompt, "
            f"${answer['completion']:g} completion; per million tokens"
        )
    else:
        output.say(f"{answer['name']}: no price; requests cost nothing")


def alias_set(alias: str, chute: str, as_json: bool) -> None:
    answer = client.connect(settings.load()).call(
        "POST", "/model_aliases/", {"alias": alias, "chute_ids": [chute]}
    )
    if as_json:
        output.document(answer)
    else:
        output.note(f"Requests for {answer['alias']!r} go to {answer['chute_names'][0]}.")


def alias_list(as_json: bool) -> None:
    aliases = client.connect(settings.load()).call("GET", "/model_aliases/")
    if as_json:
        output.document(aliases)
    elif not aliases:
        output.note("There is no alias yet: chutes alias set fast my-chute")
    else:
        rows = [
            [alias["alias"], ", ".join(alias["chute_names"]) or f"not deployed ({alias['chute_ids'][0]})"]
            for alias in aliases
        ]
        output.table(["NAME", "CHUTE"], rows)


def alias_delete(alias: str, as_json: bool) -> None:
    answer = client.connect(settings.load()).call("DELETE", client.named("model_aliases", alias))
    if as_json:
        output.document(answer)
    else:
        output.note(f"Deleted alias {alias}.")
