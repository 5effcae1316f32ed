"""Freed memory that goes back to the system."""

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache

M_MMAP_THRESHOLD = -3  # of mallopt(3), as glibc numbers it
LARGE = 128 << 10  # bytes
SET = "MALLOC_MMAP_THRESHOLD_"  # who says so in the environment is asked nothing


@cache
def give_back() -> None:
    """From now on blocks above 128 kB leave the process when they are freed; for who would rather wait than run out.

    glibc's bound grows with what is freed, up to 32 MB, and what is smaller stays with the process. Where there is no
    glibc, nothing changes.
    """
    if sys.platform == "linux" and SET not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
