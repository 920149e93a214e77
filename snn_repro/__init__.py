"""snn_repro: train and compare spiking networks with a learnable initial membrane potential (IMP)."""

import os

__version__ = "0.1.0"

# OpenMP threads that spin at barriers make tiny networks 4-60 times slower on busy cores. libgomp reads this once,
# when torch loads it, so it is set here, before any module of ours can import torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
