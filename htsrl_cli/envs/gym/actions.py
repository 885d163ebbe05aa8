"""Conversion of action vectors into actions of their Gymnasium space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from gymnasium import spaces

from htsrl_cli.envs.base import ActionSpec, Array
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.envs.gym.parts import Part, is_whole, parts, put_together
from htsrl_cli.errors import ConfigError


@dataclass(frozen=True)
class ActionForm:
    """The form of actions in a slot.

    Attributes:
        spec: the form of an action.
        convert: function that converts an action vector into an action of the environment.
        note: what happens to the numbers, for the log; empty if nothing does.
    """

    spec: ActionSpec
    convert: Callable[[Array], Any]
    note: str = ""


def action_form(config: GymConfig, space: spaces.Space[Any]) -> ActionForm:
    """Returns the form of htsrl's actions for a space of Gymnasium.

    With `env.scale_actions`, -1 and 1 stand for the bounds in each dimension of a `Box` that has
    two finite bounds. All actions of a `Box` are clipped to the bounds. The action vector for a
    `Dict` or `Tuple` holds the vectors of its parts in order.

    Raises:
        ConfigError: a part is neither `Discrete`, `MultiDiscrete`, `MultiBinary` nor a `Box` of
            floats, or some parts are a `Box` and others are not, or there are no actions.
    """
    found = parts("action_space", space)
    forms = [_part_form(config, part) for part in found]
    if not sum(form.spec.num_dims for form in forms):
        raise ConfigError("env.id", config.id, "its action_space has no entries")
    if is_whole(space):
        return forms[0]
    for part, form in zip(found, forms, strict=True):
        if form.spec.kind != forms[0].spec.kind:
            remedy = (
                f"its {part} and its {found[0]} cannot be mixed: all parts must be a Box of "
                "floats, or none"
            )
            raise ConfigError("env.id", config.id, remedy)
    specs = [form.spec for form in forms]
    spec = ActionSpec(
        specs[0].kind,
        sizes=tuple(size for spec in specs for size in spec.sizes),
        low=tuple(bound for spec in specs for bound in spec.low),
        high=tuple(bound for spec in specs for bound in spec.high),
    )
    ends = list(accumulate(spec.num_dims for spec in specs))

    def to_action(action: Array) -> Any:
        vectors = zip(forms, np.split(action, ends[:-1]), strict=True)
        return put_together(space, (form.convert(vector) for form, vector in vectors))

    named = zip(found, forms, strict=True)
    note = "; ".join(f"{part.name}: {form.note}" for part, form in named if form.note)
    return ActionForm(spec, to_action, note)


def _part_form(config: GymConfig, part: Part) -> ActionForm:
    """Returns the form of the actions of a space other than `Dict` and `Tuple`."""
    space = part.space
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        spec = ActionSpec("categorical", sizes=(int(space.n),))
        return ActionForm(spec, lambda action: int(action[0]) + start)
    if isinstance(space, spaces.MultiDiscrete):
        multi = space
        spec = ActionSpec("categorical", sizes=tuple(int(n) for n in multi.nvec.ravel()))
        return ActionForm(
            spec,
            lambda action: (action.reshape(multi.shape) + multi.start).astype(multi.dtype),
        )
    if isinstance(space, spaces.MultiBinary):
        bits = space
        spec = ActionSpec("categorical", sizes=(2,) * int(np.prod(bits.shape)))
        return ActionForm(spec, lambda action: action.reshape(bits.shape).astype(bits.dtype))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _gaussian(space, config.scale_actions)
    remedy = f"its {part} must be Discrete, MultiDiscrete, MultiBinary or a Box of floats"
    raise ConfigError("env.id", config.id, remedy)


def _gaussian(box: spaces.Box, scaled: bool) -> ActionForm:
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & scaled
    # Where an action is not mapped, the middle is 0 and half the width is 1.
    ends = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    middle, half = ends[0] / 2 + ends[1] / 2, ends[1] / 2 - ends[0] / 2
    least, most = np.where(bounded, -1.0, low), np.where(bounded, 1.0, high)
    spec = ActionSpec(
        "gaussian", low=tuple(least.ravel().tolist()), high=tuple(most.ravel().tolist())
    )

    def to_action(action: Array) -> Array:
        clipped = np.clip(action.reshape(box.shape), least, most)
        mapped = np.asarray(middle + half * clipped, box.dtype)
        # Rounding may have moved a bound.
        return np.asarray(mapped.clip(box.low, box.high))

    is_mapped = bool((least != low).any() or (most != high).any())
    return ActionForm(spec, to_action, f"actions from -1 to 1 are mapped to {box}" * is_mapped)
