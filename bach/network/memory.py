"""What the C library does with memory that a network on the CPU gives back, on Linux."""

import ctypes

# Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """Have the C library keep memory that it was given back.

    By default it returns every large block to the system, and each operation of a
    network that runs on the CPU gets its feature maps anew, page by page: a third of the
    time of a large region. One heap, for what one thread frees another asks for. See
    `release_memory` for its end.
    """
    if (library := _c_library()) is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            library.mallopt(option, value)


def release_memory() -> None:
    """Give back to the system what is not in use; to be called where that pays.

    Regions of other sizes leave holes in the heap that the next one does not fit in;
    kept for good, they would add up over a large slide.
    """
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


def _c_library() -> ctypes.CDLL | None:
    """glibc, or None on another system or with another C library."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None
