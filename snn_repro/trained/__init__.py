"""Work with a trained network: load, evaluate, predict, export."""

from snn_repro.trained.load import TrainedRun, load_run

__all__ = ["TrainedRun", "load_run"]
