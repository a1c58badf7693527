"""Settings of the GNU C library's malloc for training."""

__all__ = ["KEEP_MEMORY"]

KEEP_MEMORY = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        f"glibc.malloc.mmap_threshold={4 << 30}",
        f"glibc.malloc.trim_threshold={16 << 30}",
        f"glibc.malloc.top_pad={256 << 20}",
    )
)
"""Tunables that let the next training step reuse the memory that a step frees, in huge pages.

By default much of that memory returns to the kernel, which clears it page by page before it is used
again. The cost depends on the network: ``python -m benchmarks.training_step`` measures it. The
string is a value of the environment variable ``GLIBC_TUNABLES`` (see *Memory Allocation Tunables*
in the library's manual).
"""
