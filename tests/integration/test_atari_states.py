"""Atari's states: restored in another process, at any frame, and in all games."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from htsrl_cli.envs.atari import emulator
from htsrl_cli.envs.atari.emulator import ATARI_57
from htsrl_cli.envs.atari.environment import AtariEnv
from tests import sections
from tests.unit.test_atari import play, random_actions

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.integration.test_atari_states import AtariEnv, play, random_actions, sections
config = sections.atari(sys.argv[2], frame_skip=int(sys.argv[3]), repeat_action_probability=.25)
env = AtariEnv(config)
obs = env.set_state(Path(sys.argv[4]).read_bytes())
print(obs.sum(), play(env, random_actions(env, 400, seed=7)))
"""


@pytest.mark.parametrize(
    ("game", "frame_skip"), [("breakout", 4), ("yars_revenge", 1), ("qbert", 4), ("alien", 1)]
)
def test_another_process_goes_on_alike(game: str, frame_skip: int, tmp_path: Path) -> None:
    """Restores a state in another process, with sticky actions and lost lives before and after.

    With a frame skip of 1 every frame is compared.
    """
    config = sections.atari(game, frame_skip=frame_skip, repeat_action_probability=0.25)
    env = AtariEnv(config)
    obs, _ = env.reset(seed=5)
    for t, action in enumerate(random_actions(env, 1300)):
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset(seed=t)
    path = tmp_path / "state"
    path.write_bytes(env.get_state())
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(root), game, str(frame_skip), str(path)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = f"{obs.sum()} {play(env, random_actions(env, 400, seed=7))}\n"
    assert child.stdout == expected
    assert child.stderr == ""


@pytest.mark.parametrize("game", ["yars_revenge", "qbert", "amidar", "alien"])
def test_half_drawn_frames_at_a_keyframe(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a keyframe at every frame: what the emulator's own states lack must not matter."""
    monkeypatch.setattr(emulator, "_FRAMES_BETWEEN_KEYFRAMES", 1)
    config = sections.atari(game, frame_skip=1, terminal_on_life_loss=False)
    env, restored = AtariEnv(config), AtariEnv(config)
    env.reset(seed=0)
    restored.reset(seed=1)
    for t, action in enumerate(random_actions(env, 1500)):
        restored.set_state(env.get_state())
        obs, *rest = env.step(action)
        other, *other_rest = restored.step(action)
        assert (obs == other).all()
        assert rest == other_rest
        assert (env._emulator._ale.getRAM() == restored._emulator._ale.getRAM()).all()
        if rest[1]:
            env.reset(seed=t)


@pytest.mark.parametrize(
    "game",
    [pytest.param(g, marks=[pytest.mark.slow] if i % 5 else []) for i, g in enumerate(ATARI_57)],
)
def test_every_game_starts_and_goes_on_after_a_restore(game: str) -> None:
    """Restores into an emulator that has played other actions; actions are sticky."""
    config = sections.atari(game, repeat_action_probability=0.25)
    env, restored = AtariEnv(config), AtariEnv(config)
    env.reset(seed=1)
    play(env, random_actions(env, 60))
    restored.reset(seed=2)
    play(restored, random_actions(restored, 30, seed=1))
    assert (restored.set_state(env.get_state()) == env._observation()).all()
    actions = random_actions(env, 30, seed=2)
    assert play(env, actions) == play(restored, actions)


def test_thousands_of_restores_of_qbert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores 3,000 times: an emulator was reported to crash after some 2,000."""
    monkeypatch.setattr(emulator, "_FRAMES_BETWEEN_KEYFRAMES", 16)
    config = sections.atari("qbert", terminal_on_life_loss=False)
    env, unsaved = AtariEnv(config), AtariEnv(config)
    env.reset(seed=0)
    unsaved.reset(seed=0)
    for t, action in enumerate(random_actions(env, 3000)):
        env.set_state(env.get_state())
        obs, *rest = env.step(action)
        expected, *expected_rest = unsaved.step(action)
        assert (obs == expected).all()
        assert rest == expected_rest
        if rest[1]:
            env.reset(seed=t)
            unsaved.reset(seed=t)
