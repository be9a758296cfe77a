"""Chute files that `chutes init` copies: whole, working ones, with a placeholder for the user's name."""
