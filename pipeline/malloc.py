"""How the GNU C library's malloc is to work in trainings."""

__all__ = ["KEEP_MEMORY"]

KEEP_MEMORY = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        f"glibc.malloc.mmap_threshold={4 << 30}",
        f"glibc.malloc.trim_threshold={16 << 30}",
        f"glibc.malloc.top_pad={256 << 20}",
    )
)
"""Tunables by which memory that a step frees serves the next one, in huge pages.

By default much of it goes back to the kernel, which clears it page by page when it is wanted again.
What that costs depends on the network: ``python -m benchmarks.training_step`` measures it. A value
of the environment variable ``GLIBC_TUNABLES`` (the library's manual, *Memory Allocation Tunables*).
"""
