"""Where instances run. One small interface; today's only implementation is this machine's own processes."""
