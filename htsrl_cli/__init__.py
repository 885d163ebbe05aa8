"""High-Throughput Synchronous Deep RL: fast, bit-reproducible training on one machine.

Importing the package is cheap: worker processes import it, so neither torch nor hydra
may be reachable from here.
"""

__version__ = "0.2.0"
