"""`python -m chutes` is `chutes`."""

from chutes.cli.main import main

if __name__ == "__main__":
    main()
