"""The paper's figures and those of the studies; importing this registers them."""

from snn_repro.registry import import_all

import_all(__name__, __path__)
