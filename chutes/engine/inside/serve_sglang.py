"""`python -m sglang.launch_server` with what it does not take from its environment.

    SGLANG_API_KEY=… python serve_sglang.py ARGUMENT...

SGLang takes its key on the command line only, where `ps` shows it to every user of the machine, and writes
it into its log with all other arguments. Here it comes as an environment variable and is taken out of what
is logged. Without a GPU (SGLANG_USE_CPU_ENGINE=1) packages for GPUs are played, see `sglang_on_cpu`.

SGLang's child processes run this file again, with another `__name__`.
"""

import logging
import os
import runpy
import sys

if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
    import sglang_on_cpu  # noqa: F401  importing it is what it is for


def keep_secret(key: str) -> None:
    """Take `key` out of everything that this process logs."""
    make = logging.getLogRecordFactory()

    def record(*args, **options):
        made = make(*args, **options)
        text = made.getMessage()
        if key in text:
            made.msg, made.args = text.replace(key, "***"), ()
        return made

    logging.setLogRecordFactory(record)


def main() -> None:
    if key := os.environ.pop("SGLANG_API_KEY", ""):
        keep_secret(key)
        sys.argv += ["--api-key", key]
    runpy.run_module("sglang.launch_server", run_name="__main__")


if __name__ == "__main__":
    main()
