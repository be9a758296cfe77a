"""Small helpers that chute files import by their published names."""
