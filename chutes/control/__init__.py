"""What should run and what does: the store, the reconciler, keys, the control API, the platform process."""
