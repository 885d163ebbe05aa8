"""High-Throughput Synchronous Deep RL: fast, bit-reproducible training on one machine.

Worker processes import this package, so it must import neither torch nor hydra.
"""

__version__ = "0.2.0"
