"""The command line. It prints and asks; what happens is decided in the rooms below."""
