"""snn_repro: train and compare spiking networks with a learnable initial membrane potential (IMP)."""

__version__ = "0.1.0"
