"""The paper's measurements, as functions that return numbers. Needs ``irevnet[analysis]``."""
