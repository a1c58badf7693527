"""Reversible networks: coupling blocks, their arithmetic and their backward pass."""
