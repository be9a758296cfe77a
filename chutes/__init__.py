"""Chutes: deploy a model with one Python file, on your own machines."""

__version__ = "0.1.0"
