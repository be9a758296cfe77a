"""The image of SGLang chutes."""

# Published name: chutes/sglang:nightly-2025111800, in a registry of that platform.
# This is SGLang's own release.
SGLANG = "lmsysorg/sglang:v0.5.23"
