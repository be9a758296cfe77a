"""Measurements that anyone can run again; raw results are kept in `benchmarks/results/`."""
