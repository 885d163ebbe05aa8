"""The generated part of docs/reference/checkpoints.md: the arrays of a slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.storage.slot import Slot, slot_fields
from scripts.reference.markdown import attributes, sentence, table


def slot_arrays() -> str:
    """Returns the table of a slot's arrays, in the order in which they are hashed."""
    texts = attributes(Slot)
    spec = EnvSpec((), "float32", ActionSpec("categorical", (1,)), has_masks=True)
    rows = [[f"`slot/{field.name}`", sentence(texts[field.name])] for field in slot_fields(spec, 1)]
    return table(["Array", "Content"], rows)


REGIONS: Mapping[str, Callable[[], str]] = {"slot": slot_arrays}
