"""Football: states that restore exactly, in any process.

All comparisons are bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import sections
from tests.harness import NO_FOOTBALL
from tests.integration.football_games import EASY, FULL, KEEPER, ROOT, child

pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)

from htsrl_cli.envs.base import Env
from htsrl_cli.envs.football import environment as football
from htsrl_cli.envs.football.config import SCENARIOS, FootballConfig
from htsrl_cli.envs.football.environment import NUM_ACTIONS
from htsrl_cli.envs.registry import make_env
from htsrl_cli.envs.state import pack_state, unpack_state
from htsrl_cli.errors import CheckpointError

# gym is no longer maintained and warns about that.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:gym\.")

IDLE, RIGHT, SHOT = 0, 5, 12

CHILD = """
import json, sys
from htsrl_cli.envs.football import environment as football
from tests.integration.test_football_states import futures

cases, football.STEPS_BETWEEN_KEYFRAMES = json.loads(sys.argv[1])
for case in cases:
    print(json.dumps(futures(case)), flush=True)
"""


def trace(env: Env, num_steps: int, seed: int) -> list[str]:
    """Plays random actions; returns digests of all results, resets included, and the last state.

    The engine's part of the state is left out, as its padding is uninitialized.
    """
    rng, digests = np.random.default_rng(seed), []
    for _ in range(num_steps):
        obs, reward, *ends, info = env.step(rng.integers(0, NUM_ACTIONS, env.env_spec.num_players))
        said = repr((np.asarray(reward).tolist(), ends, info))
        digests.append(hashlib.sha256(obs.tobytes() + said.encode()).hexdigest()[:12])
        if any(ends):
            obs, _ = env.reset(seed=int(rng.integers(2**31)))
            digests.append("reset " + hashlib.sha256(obs.tobytes()).hexdigest()[:12])
    meta, (played, *keyframe) = unpack_state("football", env.get_state())
    return [*digests, repr((meta, played, keyframe[1:]))]


def futures(case: dict[str, Any]) -> list[list[str]]:
    """Traces a state in a new environment, and in one that has played something else since."""
    state = Path(case["state"]).read_bytes()
    with closing(make_env(sections.football(**case["config"]), 0)) as env:
        found = []
        for _ in range(2):
            obs = hashlib.sha256(env.set_state(state).tobytes()).hexdigest()
            found.append([obs, *trace(env, case["num_steps"], seed=5)])
            env.reset(seed=99)
            trace(env, 37, seed=6)
        return found


def check_restores(configs: list[FootballConfig], folder: Path, before: int, after: int) -> int:
    """Checks that another process continues from saved states like this one.

    Args:
        before: env steps before a state is saved.
        after: env steps to compare.

    Returns:
        The number of resets in the compared env steps.
    """
    cases, expected = [], []
    for number, config in enumerate(configs):
        path = folder / str(number)
        with closing(make_env(config, 0)) as env:
            env.reset(seed=11 + number)
            trace(env, before, seed=3)
            path.write_bytes(env.get_state())
            future = trace(env, after, seed=5)
            obs = hashlib.sha256(env.set_state(path.read_bytes()).tobytes()).hexdigest()
            expected.append([obs, *future])
        cases.append({"config": asdict(config), "state": str(path), "num_steps": after})
    words = json.dumps([cases, football.STEPS_BETWEEN_KEYFRAMES])
    lines = [json.loads(line) for line in child(CHILD, words).splitlines() if line[:2] == "[["]
    for config, traces, futures_found in zip(configs, expected, lines, strict=True):
        assert futures_found == [traces, traces], config
    return sum(line.startswith("reset") for traces in expected for line in traces)


def test_states_restore_in_another_process(tmp_path: Path) -> None:
    configs = [
        EASY,
        replace(KEEPER, num_left_players=3),
        replace(KEEPER, representation="simple115v2", frame_stack=2),
        sections.football("1_vs_1_easy", num_left_players=1, num_right_players=1),
    ]
    assert check_restores(configs, tmp_path, 200, 200) > 5


def test_states_restore_over_keyframes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers one keyframe before the state is saved, and two while futures are compared."""
    monkeypatch.setattr(football, "STEPS_BETWEEN_KEYFRAMES", 40)
    configs = [
        sections.football("5_vs_5"),
        sections.football("5_vs_5", num_left_players=2, num_right_players=2),
        replace(KEEPER, num_left_players=3),
    ]
    check_restores(configs, tmp_path, before=70, after=60)


@pytest.mark.slow
def test_states_of_all_scenarios_restore_in_another_process(tmp_path: Path) -> None:
    configs = [sections.football(scenario) for scenario in SCENARIOS]
    check_restores(configs, tmp_path, 200, 200)


@pytest.mark.slow
@pytest.mark.parametrize("before", [450, 520, 1040])
def test_states_restore_over_true_keyframes(before: int, tmp_path: Path) -> None:
    """Covers several matches: the engine's states lack something in only some of them."""
    matches = [sections.football("5_vs_5"), FULL, sections.football("1_vs_1_easy")]
    check_restores(matches * 3, tmp_path, before, 120)


def at_keyframe(env: Env, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Returns a state that includes the engine's own."""
    monkeypatch.setattr(football, "STEPS_BETWEEN_KEYFRAMES", 5)
    env.reset(seed=1)
    for _ in range(7):
        env.step(np.array([IDLE]))
    return env.get_state()


def test_damaged_and_foreign_states_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(make_env(EASY, 0)) as env:
        state = at_keyframe(env, monkeypatch)
        middle = len(state) // 2
        flipped = state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :]
        for damaged in (b"", state[:-1], b"?" + state[1:], flipped):
            with pytest.raises(CheckpointError):
                env.set_state(damaged)
        expected = env.set_state(state)
        assert env.get_state() == state
    others = {
        "scenario": sections.football("academy_empty_goal"),
        "representation": replace(EASY, representation="simple115v2"),
        "frame_stack": replace(EASY, frame_stack=2),
    }
    for name, config in others.items():
        with closing(make_env(config, 0)) as env, pytest.raises(CheckpointError, match=name):
            env.set_state(state)
    with closing(make_env(EASY, 0)) as env:
        assert np.array_equal(env.set_state(state), expected)


class Hostile:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("executed", "w")


def engine_parts(engine: bytes) -> dict[str, bytes]:
    """Returns bad replacements for the engine's own state, pickles among them."""
    hostile = pickle.dumps(Hostile())
    return {
        "pickle": hostile,
        "package": len(hostile).to_bytes(4, "little") + hostile + engine[4:],
        "empty": b"",
        "longer": engine + hostile,
    }


def test_pickles_are_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restores a pickle instead of a state, and pickles packed as the engine's part of one."""
    monkeypatch.chdir(tmp_path)
    with closing(make_env(EASY, 0)) as env:
        state = at_keyframe(env, monkeypatch)
        meta, (played, engine, stack) = unpack_state("football", state)
        parts = engine_parts(engine)
        del parts["longer"]
        packed = [pack_state("football", meta, [played, part, stack]) for part in parts.values()]
        for hostile in (pickle.dumps(Hostile()), *packed):
            with pytest.raises(CheckpointError):
                env.set_state(hostile)
        env.set_state(state)
    assert list(tmp_path.iterdir()) == []


LONGER = """
import sys
from pathlib import Path
from htsrl_cli.envs.registry import make_env
from tests.integration.football_games import EASY

env = make_env(EASY, 0)
env.set_state(Path(sys.argv[1]).read_bytes())
"""


def test_an_engine_state_that_does_not_fit_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restores an engine state that is too long: the engine ends the process."""
    with closing(make_env(EASY, 0)) as env:
        meta, (played, engine, stack) = unpack_state("football", at_keyframe(env, monkeypatch))
    path = tmp_path / "state"
    part = engine_parts(engine)["longer"]
    path.write_bytes(pack_state("football", meta, [played, part, stack]))
    (tmp_path / "cwd").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LONGER, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path / "cwd",
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert list((tmp_path / "cwd").iterdir()) == []
