"""snn_repro: train and compare spiking networks with a learnable initial membrane potential (IMP)."""

import os

__version__ = "1.0.0"

# OpenMP threads that spin at barriers slow tiny networks down 4-60 times on busy cores. libgomp reads this variable once
# at load time, so it is set before any of our modules imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
