"""One model server as a process: its isolated environment, command line, readiness, phases and stop."""
