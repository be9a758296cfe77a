"""Have SGLang's own parser judge a list of server arguments, without starting anything.

Runs inside an engine's environment:

    python check_sglang_arguments.py -- ARGUMENT...

The last line of stdout is JSON, as `check_vllm_arguments.py` says it.
"""

import argparse
import difflib
import json
import os
import sys

if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
    import sglang_on_cpu  # noqa: F401  importing it is what it is for


class Rejected(Exception):
    """The parser's own words."""


class Parser(argparse.ArgumentParser):
    """Raises where argparse would print and exit."""

    def error(self, message: str):
        raise Rejected(message)

    def exit(self, status: int = 0, message: str | None = None):
        raise Rejected((message or "--help and --version are not for a server").strip())

    def print_help(self, file=None) -> None:
        pass


def build_parser() -> Parser:
    from sglang.srt.server_args import ServerArgs

    parser = Parser()
    ServerArgs.add_cli_args(parser)
    return parser


def judge(parser: Parser, given: list[str]) -> None:
    """Raise Rejected, or whatever SGLang raises, where the server would refuse to start.

    What it refuses because of the model or of the machine is not asked: with `dummy` for a model it looks at
    neither.
    """
    from sglang.srt.server_args import ServerArgs

    args = parser.parse_args([*given, "--model-path", "dummy"])
    ServerArgs.from_cli_args(args).resolve_once()


def suggestions(parser: Parser, message: str) -> list[list[str]]:
    """For every flag in `message` that the parser does not know, the known one most like it."""
    known = [option for action in parser._actions for option in action.option_strings]
    flags = [word.split("=")[0] for word in message.split() if word.startswith("-")]
    near = [(flag, difflib.get_close_matches(flag, known, n=1)) for flag in flags if flag not in known]
    return [[flag, found[0]] for flag, found in near if found]


def main() -> None:
    given = sys.argv[sys.argv.index("--") + 1 :]
    parser = build_parser()
    verdict = {"ok": True, "message": "", "suggestions": []}
    try:
        judge(parser, given)
    except Exception as error:  # the parser, argument types and SGLang's own checks raise different kinds
        message = str(error)
        near = suggestions(parser, message) if message.startswith("unrecognized") else []
        verdict = {"ok": False, "message": message or type(error).__name__, "suggestions": near}
    print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
