"""Figures of the studies; importing this registers them beside the package's own."""

from snn_repro.registry import import_all

import_all(__name__, __path__)
