"""What is done with a trained network: load it, test it again, ask it, hand it on to other tools."""

from snn_repro.trained.load import TrainedRun, load_run

__all__ = ["TrainedRun", "load_run"]
