"""The paper's measurements as functions: numbers out, no plots. Needs ``irevnet[analysis]``."""
