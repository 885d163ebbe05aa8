"""Checkpoints of an earlier format: they are restored bit for bit, and their runs continue.

The last version before format 2 wrote `tests/data/format_1.ckpt` when SIGTERM stopped it after five
rollouts. It holds a slot still to be learned from and some truncated episodes. The digests next to
it are from that version's `summary.json` at the same barrier.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.checkpoints.state import digest
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.runners.rollout_digest import digest_of_run
from htsrl_cli.runners.snapshot import restore, unlearned_slot
from htsrl_cli.runners.wiring import connect
from tests import harness

DATA = Path(__file__).parents[1] / "data"
PATH = DATA / "format_1.ckpt"


def stored_config(runner: str) -> TrainConfig:
    config = load_train_config(load_checkpoint(PATH).meta["config"])
    return replace(config, runner=replace(config.runner, name=runner))


def test_every_bit_is_restored() -> None:
    set_up_torch()
    expected = json.loads((DATA / "format_1.json").read_text())
    checkpoint = load_checkpoint(PATH)
    with ExitStack() as stack:
        roles = connect(stored_config("serial"), checkpoint, stack)
        rollout, is_exact = restore(roles, checkpoint)
        assert is_exact
        assert rollout * roles.plan.steps_per_rollout == expected["env_steps"]
        assert roles.learner.num_updates_done == expected["updates"]
        assert digest(roles.learner.parameters()) == expected["params_sha256"]
        assert digest(roles.learner.optimizer_state()) == expected["optimizer_sha256"]
        found = digest_of_run(roles.rollouts.with_slot(unlearned_slot(roles, rollout)))
        assert found == expected["rollouts_sha256"]


def test_the_run_goes_on_the_same_by_whatever_workers(tmp_path: Path) -> None:
    config = stored_config("serial")
    expected = harness.run(config, tmp_path / "serial", PATH)
    others = harness.with_workers(stored_config("hts"), 4, 2, 1)
    assert harness.run(others, tmp_path / "hts", PATH) == expected
    summary = json.loads((tmp_path / "hts" / "summary.json").read_text())
    assert summary["env_steps"] == config.total_steps
    assert summary["episodes"] > json.loads((DATA / "format_1.json").read_text())["episodes"]
