"""Reading of many spans of files in one call, which holds the interpreter's lock for none of them.

A call of its own for each would let the lock go and take it back each time. Beside a thread that enqueues kernels for a
GPU, and others that decode, taking it back takes longer than reading.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled


@compiled
def read_spans(
    read: Any,
    descriptors: NDArray[np.int32],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    out: NDArray[np.uint8],
    places: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Read a span of each file.

    Args:
        read: `fastssl.native.pread`, which a compiled function has to be given.
        descriptors: (N,) of the open files.
        offsets: (N,) where each span begins in its file.
        sizes: (N,) bytes of each.
        out: memory to be filled.
        places: (N,) where each span is to lie in it.

    Returns:
        (N,) whether a span was read whole; not so if the file ends before, or the system does not give it.
    """
    is_whole = np.empty(len(sizes), np.bool_)
    for i in range(len(sizes)):
        is_whole[i] = read(descriptors[i], out.ctypes.data + places[i], sizes[i], offsets[i]) == sizes[i]
    return is_whole
