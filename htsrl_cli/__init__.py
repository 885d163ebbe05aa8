"""High-Throughput Synchronous Deep RL: fast, bit-reproducible training on one machine.

Executors import this package, so this file must import neither torch nor hydra.
"""

__version__ = "0.2.0"
