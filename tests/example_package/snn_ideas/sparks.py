"""An event set: dataset=sparks."""

import struct

from snn_repro.data.sets import EventSet, register
from snn_repro.errors import DataError


@register("sparks")
class Sparks(EventSet):
    """Two classes of sparks; a file is its number of events, then x, y, polarity and time of each."""

    shape, num_classes = (2, 12, 16), 2
    samples = 18, 2
    class_names = ("left", "right")
    pattern = r"{c}_\d+\.spk"
    expected = "the folders left and right, or left.zip and right.zip"

    def decode(self, data, name):
        import numpy as np

        from snn_repro.data.events import Events

        (n,) = struct.unpack_from("<I", data)
        if len(data) != 4 + 7 * n:
            raise DataError(f"{name} should have {n} events and has {len(data)} bytes")
        x, y, p, t = (np.array(v) for v in zip(*struct.iter_unpack("<BBBI", data[4:]), strict=True))
        return Events(t.astype(np.int64), x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))
