"""The difference between one observation and a batch of observations."""

from __future__ import annotations


def is_batch(name: str, shape: tuple[int, ...], one: tuple[int, ...]) -> bool:
    """Returns True for a batch of observations, and False for one observation.

    Args:
        name: name of the observation or of a part of it, for the error.
        shape: shape of the observation or the batch; a batch has one more axis in front.
        one: shape of one observation.

    Raises:
        ValueError: the shape is that of neither.
    """
    if shape == one:
        return False
    if shape[1:] == one and len(shape) == len(one) + 1 and shape[0]:
        return True
    raise ValueError(
        f"the {name} has the shape {shape}, but one observation of this run's environment has "
        f"{one}, and a batch of N has {('N', *one)}"
    )
