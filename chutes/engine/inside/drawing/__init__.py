"""The server of image chutes: it runs in an engine's environment and knows nothing of the platform.

In the order in which a request meets them: `app` (HTTP), `asked` (what may be asked), `studio` (the line,
and the one thread that draws), `artist` (the pipeline; the only file that imports torch), `shelf`
(pictures kept for their URLs).
"""
