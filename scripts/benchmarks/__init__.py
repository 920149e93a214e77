"""Benchmarks: one module per subject of scripts/benchmark.py."""
