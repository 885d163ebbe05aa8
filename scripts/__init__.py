"""Checks of the source code and measurements of htsrl; run as `python -m scripts.NAME`."""
