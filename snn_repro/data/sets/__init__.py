"""All data sets, one file each, in `SETS`; dataset.py explains how to add one."""

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import SETS, DataSet, Sample, register
from snn_repro.data.images import ImageSet
from snn_repro.data.sets.imagenet import ImageNet1k
from snn_repro.registry import import_all

__all__ = ["SETS", "DataSet", "EventSet", "ImageNet1k", "ImageSet", "Sample", "register"]

import_all(__name__, __path__)
