"""All data sets, one file each: `SETS["cifar10"]` knows what there is to know of CIFAR-10. See dataset.py for how to add one."""

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import SETS, DataSet, Sample, register
from snn_repro.data.images import ImageSet
from snn_repro.data.sets.imagenet import ImageFolders
from snn_repro.registry import import_all

__all__ = ["SETS", "DataSet", "EventSet", "ImageFolders", "ImageSet", "Sample", "register"]

import_all(__name__, __path__)
