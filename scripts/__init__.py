"""Checks of the source and measurements of the product; run as `python -m scripts.NAME`."""
