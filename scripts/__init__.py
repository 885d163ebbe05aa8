"""Measurements of htsrl and checks of its source code; run as `python -m scripts.NAME`."""
