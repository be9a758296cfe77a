"""Have vLLM's own parser judge a list of server arguments, without starting anything.

Runs inside an engine's environment:

    python check_vllm_arguments.py -- ARGUMENT...

The last line of stdout is JSON: {"ok": bool, "message": str, "suggestions": [[given, known], ...]}. The exit
code is 0 whenever there is a verdict; anything else means that the check itself failed.
"""

import difflib
import json
import sys


class Rejected(Exception):
    """The parser's own words."""


def build_parser():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())

    def reject(status=0, message=None):
        # argparse ends with "prog: error: ..."; a request for help ends here too, without a message.
        text = (message or "--help and --version are not for a server").strip()
        raise Rejected(text.split("error: ", 1)[-1])

    parser.exit = reject
    parser.print_usage = parser.print_help = lambda *_: None
    return parser


def judge(parser, given: list[str]) -> None:
    """Raise Rejected, or whatever vLLM raises, where the server would refuse to start."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args

    # Any directory will do for a model: nothing of it is read, and without one vLLM asks the hub.
    args = parser.parse_args([*given, "--model", "."])
    if args.model_tag is not None:  # vLLM's parser takes one bare word for a model, and the server ignores it
        raise Rejected(f"unrecognized arguments: {args.model_tag}")
    validate_parsed_serve_args(args)
    validate_api_server_args(args)
    AsyncEngineArgs.from_cli_args(args)


def suggestions(parser, message: str) -> list[list[str]]:
    """For every flag in `message` that the parser does not know, the known one most like it."""
    known = [option for action in parser._actions for option in action.option_strings]
    found = []
    for word in message.split():
        flag = word.split("=")[0].replace("_", "-")
        if flag.startswith("-") and flag not in known:
            found += [[flag, near] for near in difflib.get_close_matches(flag, known, n=1)]
    return found


def main() -> None:
    given = sys.argv[sys.argv.index("--") + 1 :]
    parser = build_parser()
    verdict = {"ok": True, "message": "", "suggestions": []}
    try:
        judge(parser, given)
    except Exception as error:  # the parser, argument types and vLLM's own checks raise different kinds
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        near = suggestions(parser, message) if message.startswith("unrecognized") else []
        verdict = {"ok": False, "message": message or type(error).__name__, "suggestions": near}
    print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
