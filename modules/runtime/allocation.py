"""Where the memory of freed tensors goes."""

import ctypes

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep what this process frees for tensors to come, up to its end.

    glibc gives every block above 32 MB back to the system at once, and the next tensor
    gets new pages, zeroed one by one: a quarter of the time that HTDemucs takes to
    separate a song on a CPU. Meant for commands whose tensors have the same few sizes;
    among many sizes the memory that is held grows. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
