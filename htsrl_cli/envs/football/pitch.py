"""A drawing of a football match from above, for videos.

The side in yellow plays from left to right, the side in dark blue from right to left, as in the
engine's own pictures.
"""

from __future__ import annotations

import functools
import itertools

import cv2
import numpy as np

from htsrl_cli.envs.base import Array
from htsrl_cli.envs.football.match import NOBODY, View

WIDTH, HEIGHT = 960, 640

# Meters per unit of x and of y, from the engine's own scales; the pitch is 2 x 0.84 units.
_METRES = np.array([54.4, 83.6])
_HALF_LENGTH, _HALF_WIDTH = 54.4, 0.42 * 83.6
_GOAL = 0.044 * 83.6
_PIXELS = 8.0  # per meter
_CENTRE = np.array([WIDTH / 2, 342.0])
_STRIPES = 12
# OpenCV draws at sixteenths of a pixel, so that players move smoothly.
_SHIFT = 4

_Colour = tuple[int, int, int]
_GRASS: tuple[_Colour, _Colour] = ((62, 137, 72), (56, 128, 66))
_SURROUNDINGS: _Colour = (38, 92, 50)
_BANNER: _Colour = (24, 34, 40)
_LINE: _Colour = (214, 234, 214)
_WHITE: _Colour = (255, 255, 255)
_BLACK: _Colour = (16, 20, 24)
_SHADOW: _Colour = (38, 92, 48)
_RING: _Colour = (255, 92, 160)
# Colors of each side's shirts and of the numbers on them.
_LEFT: tuple[_Colour, _Colour] = ((255, 214, 48), _BLACK)
_RIGHT: tuple[_Colour, _Colour] = ((30, 52, 140), _WHITE)
_PLAYER, _BALL = 1.5, 0.75  # radius in meters


def draw_pitch(
    view: View, controlled_right: tuple[int, ...], score: tuple[int, int], step: int
) -> Array:
    """Draws the pitch, uint8 [640, 960, 3], RGB.

    A ring marks each controlled player, and a white disc marks the player who has the ball. A ball
    in the air is drawn larger and away from its shadow.

    Args:
        view: the left side's view.
        controlled_right: indices of the right side's controlled players.
        score: goals of the left side and goals of the right side.
        step: env steps of the episode so far.
    """
    image = _empty_pitch().copy()
    _write_banner(image, score, step)
    owner = view.ball_owned_player
    _draw_side(
        image, view.other, _RIGHT, controlled_right, owner if view.ball_owned_team == 1 else NOBODY
    )
    _draw_side(
        image, view.own, _LEFT, view.controlled, owner if view.ball_owned_team == 0 else NOBODY
    )
    _draw_ball(image, view.ball)
    return image


def _draw_side(
    image: Array,
    positions: Array,
    shirt: tuple[_Colour, _Colour],
    controlled: tuple[int, ...],
    owner: int,
) -> None:
    for number, position in enumerate(positions):
        at = position * _METRES
        if number == owner:
            _disc(image, at, _PLAYER + 1.0, _WHITE)
        if number in controlled:
            _disc(image, at, _PLAYER + 0.65, _RING)
        _disc(image, at, _PLAYER + 0.2, _BLACK)
        _disc(image, at, _PLAYER, shirt[0])
        x, y = _pixel(at)
        _write(image, str(number), (x, y), 0.36, shirt[1])


def _draw_ball(image: Array, ball: Array) -> None:
    """Draws the ball; a higher ball is drawn larger and farther from its shadow."""
    at, height = ball[:2] * _METRES, max(0.0, float(ball[2]))
    _disc(image, at + 0.25, _BALL + 0.1, _SHADOW)
    near = _BALL * (1 + min(height, 12.0) / 12.0)
    lifted = at - np.array([0.0, 0.5 * height])
    _disc(image, lifted, near + 0.2, _BLACK)
    _disc(image, lifted, near, _WHITE)


def _write_banner(image: Array, score: tuple[int, int], step: int) -> None:
    _write(image, f"{score[0]} : {score[1]}", (WIDTH / 2, 27), 0.9, _WHITE)
    for x, name, colour in ((30.0, "controlled", _RING), (140.0, "has the ball", _WHITE)):
        _disc(image, _metres(x, 27), 1.2, colour)
        _disc(image, _metres(x, 27), 0.7, _BANNER)
        _write(image, name, (x + 56, 27), 0.45, _LINE)
    for x, (shirt, _) in ((WIDTH / 2 - 80, _LEFT), (WIDTH / 2 + 80, _RIGHT)):
        _disc(image, _metres(x, 27), 1.6, _WHITE)
        _disc(image, _metres(x, 27), 1.4, shirt)
    _write(image, f"step {step}", (WIDTH - 80, 27), 0.6, _LINE)


@functools.cache
def _empty_pitch() -> Array:
    """Draws the parts that are the same in every picture: grass, lines, goals, empty banner.

    The numbers for the lines are meters, from the Laws of the Game.
    """
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[...] = _SURROUNDINGS
    image[:54] = _BANNER
    edges = np.linspace(-_HALF_LENGTH, _HALF_LENGTH, _STRIPES + 1)
    for i, (left, right) in enumerate(itertools.pairwise(edges)):
        _box(image, (left, -_HALF_WIDTH), (right, _HALF_WIDTH), _GRASS[i % 2], cv2.FILLED)
    _box(image, (-_HALF_LENGTH, -_HALF_WIDTH), (_HALF_LENGTH, _HALF_WIDTH), _LINE)
    _box(image, (0, -_HALF_WIDTH), (0, _HALF_WIDTH), _LINE)
    _arc(image, (0, 0), 0, 360)
    _disc(image, np.zeros(2), 0.4, _LINE)
    for end in (-1, 1):
        line = end * _HALF_LENGTH
        _box(image, (line, -20.16), (line - end * 16.5, 20.16), _LINE)
        _box(image, (line, -9.16), (line - end * 5.5, 9.16), _LINE)
        _disc(image, np.array([line - end * 11, 0]), 0.4, _LINE)
        # Of the circle around the penalty spot, only the arc outside the penalty area is drawn.
        facing = 0 if end < 0 else 180
        _arc(image, (line - end * 11, 0), facing - 53, facing + 53)
        _box(image, (line, -_GOAL), (line + end * 2.4, _GOAL), (96, 150, 106), cv2.FILLED)
        _box(image, (line, -_GOAL), (line + end * 2.4, _GOAL), _WHITE)
    image.flags.writeable = False
    return image


def _pixel(metres: Array) -> tuple[float, float]:
    x, y = _CENTRE + np.asarray(metres) * _PIXELS
    return float(x), float(y)


def _metres(x: float, y: float) -> Array:
    """Converts a position in the picture to a position on the pitch: the inverse of `_pixel`."""
    return np.asarray((np.array([x, y]) - _CENTRE) / _PIXELS)


def _fixed(pixels: tuple[float, float]) -> tuple[int, int]:
    return round(pixels[0] * 2**_SHIFT), round(pixels[1] * 2**_SHIFT)


def _disc(image: Array, metres: Array, radius: float, colour: _Colour) -> None:
    centre = _fixed(_pixel(metres))
    size = round(radius * _PIXELS * 2**_SHIFT)
    cv2.circle(image, centre, size, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _box(
    image: Array,
    corner: tuple[float, float],
    opposite: tuple[float, float],
    colour: _Colour,
    thickness: int = 2,
) -> None:
    first, second = _fixed(_pixel(np.array(corner))), _fixed(_pixel(np.array(opposite)))
    cv2.rectangle(image, first, second, colour, thickness, cv2.LINE_AA, _SHIFT)


def _arc(image: Array, metres: tuple[float, float], start: float, end: float) -> None:
    radius = round(9.15 * _PIXELS * 2**_SHIFT)
    centre = _fixed(_pixel(np.array(metres)))
    cv2.ellipse(image, centre, (radius, radius), 0, start, end, _LINE, 2, cv2.LINE_AA, _SHIFT)


def _write(
    image: Array, text: str, centre: tuple[float, float], scale: float, colour: _Colour
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), _ = cv2.getTextSize(text, font, scale, 1)
    origin = (round(centre[0] - width / 2), round(centre[1] + height / 2))
    cv2.putText(image, text, origin, font, scale, colour, 1, cv2.LINE_AA)
