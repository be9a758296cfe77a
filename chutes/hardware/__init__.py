"""What there is (devices, profiles) and what a model needs of it (the plan)."""
