"""Runs: their folders, results, checkpoints and loggers, and sweeps over them."""
