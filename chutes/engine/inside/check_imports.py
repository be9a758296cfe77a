"""Import every module named on the command line; the first that fails is reported and ends the check.

Runs inside an engine's environment: the last step of making one, so that a set of packages that installs
but does not work is never taken for an environment.
"""

import importlib
import sys


def main() -> int:
    for name in sys.argv[1:]:
        try:
            importlib.import_module(name)
        except Exception as error:  # an import may fail with anything: a missing operator is a RuntimeError
            print(f"import {name}: {type(error).__name__}: {error}".replace("\n", " "))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
