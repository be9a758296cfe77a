"""Chutes to deploy as they are, or to copy and change."""
