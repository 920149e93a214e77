"""Large outputs of the CPU kernels on huge pages: a fresh block handed out 4 KiB at a time takes longer than the layer itself.

Only the block at hand is advised about (`madvise`), before its first write. Nothing is kept, and nothing of the process is set: the
block is torch's as before, and given back when torch gives it back.
"""

import ctypes
from functools import cache

from torch import Tensor

HUGE_PAGE, MADV_HUGEPAGE = 2**21, 14
SMALLEST = 2 * HUGE_PAGE  # bytes of a block: wherever it begins, a whole huge page fits in

fresh = (
    True  # whether large blocks are: asked before the call. A run keeps its memory, and then there is nothing to gain
)


@cache
def _madvise():
    """The C library's function; None where there is none."""
    try:
        function = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def on_huge_pages(*outputs: Tensor | None) -> None:
    """Ask for huge pages for what is about to be written; a system without them goes on as before."""
    if (madvise := _madvise()) is None:
        return
    for x in outputs:
        if x is not None and x.nbytes >= SMALLEST:
            first, last = -(-x.data_ptr() // HUGE_PAGE), (x.data_ptr() + x.nbytes) // HUGE_PAGE
            madvise(first * HUGE_PAGE, (last - first) * HUGE_PAGE, MADV_HUGEPAGE)
