"""Measures speed and memory against stored activations, checkpointing and other libraries.

``python -m benchmarks.memory_and_speed`` measures and writes ``results/benchmarks/``. Nothing here
is a test, and nothing in :mod:`irevnet` depends on it.
"""
