"""Names that the platform and the processes of an author's code agree on."""

CALLS = "/-/call"
"""Where an instance answers calls from Python. No cord's path begins with a minus."""

KEY = "CHUTES_INSTANCE_KEY"
"""Environment variable of the key that every request to an instance but `/health` must carry."""

PAGES = ("/docs", "/openapi.json")
"""What an instance shows of itself, unless a cord has that path."""
