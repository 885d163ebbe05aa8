"""The generated reference: current, complete, and true of what runs write."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from htsrl_cli import plugins
from htsrl_cli.checkpoints.file import FORMAT_VERSION, MAGIC, load_checkpoint
from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.config import kinds
from htsrl_cli.config import sections as schemas
from htsrl_cli.config.auto import CHOICES
from htsrl_cli.errors import HtsrlError, UsageError
from htsrl_cli.runners.snapshot import log_state
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.metric_names import METRICS
from htsrl_cli.tracking.run_log import RunLog
from htsrl_cli.workers.process import STOP_SIGNALS
from scripts.reference.markdown import attributes, typed
from scripts.reference.pages import ROOT, fill, generated_pages
from tests import sections
from tests.harness import ALGOS, run

BASES = {"env": kinds.EnvConfig, "algo": kinds.AlgoConfig, "network": kinds.NetworkConfig}
# Keys that belong to the command: no dataclass has them.
OF_THE_COMMAND = ["resume", "hydra.run.dir", "hydra.sweep.dir"]


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """Returns the part of a page under a heading, up to the next heading of its level."""
    level = heading.partition(" ")[0]
    _, _, after = text.partition(f"\n{heading}\n")
    assert after, heading
    return re.split(rf"^{level} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """Returns the names in code with which the rows of tables begin."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_pages_are_current() -> None:
    pages = generated_pages()
    stale = [path.name for path, text in pages.items() if path.read_text("utf-8") != text]
    assert not stale, "run make reference"


def test_a_region_that_nothing_fills_is_refused() -> None:
    text = "a\n<!-- generated: x (make reference) -->\nold\n<!-- end: x -->\nb\n"
    filled = "a\n<!-- generated: x (make reference) -->\n\nnew\n\n<!-- end: x -->\nb\n"
    assert fill(text, {"x": lambda: "new"}) == filled
    with pytest.raises(ValueError, match="regions"):
        fill(text, {})
    with pytest.raises(ValueError, match="regions"):
        fill(text, {"x": str, "y": str})


def test_attributes_of_docstrings_and_values_as_typed() -> None:
    texts = attributes(kinds.OwnNetworkConfig)
    assert set(texts) >= {"name", "hidden_sizes", "kwargs"}
    assert "+network.kwargs.width=3" in texts["kwargs"]
    values = [None, True, 9999, 10_000, 1e-5, 2.5e-4, 0.01, 60.0, [64, 64], "ppo"]
    words = ["null", "true", "9999", "10_000", "1e-5", "2.5e-4", "0.01", "60.0", "[64,64]", "ppo"]
    assert [typed(value).strip("`").replace(", ", ",") for value in values] == words


def names(schema: type) -> list[str]:
    return [field.name for field in fields(schema)]


def keys_of_dataclasses() -> Iterator[str]:
    """Counts how often the reference has to describe each key."""
    hints = vars(schemas)
    plain = {
        "actors": hints["ActorsConfig"],
        "learner": hints["LearnerConfig"],
        "runner": hints["RunnerConfig"],
        "checkpoint": hints["CheckpointConfig"],
        "log": hints["LogConfig"],
        "eval": hints["PeriodicEvalConfig"],
        "bench": hints["BenchConfig"],
    }
    assert {*names(schemas.TrainConfig), "bench"} - {*plain, *BASES} == {"seed", "total_steps"}
    yield from ("seed", "total_steps", *names(schemas.EvalConfig))
    for name, schema in plain.items():
        yield from (f"{name}.{field}" for field in names(schema))
    for field in names(schemas.AsyncRunnerConfig):
        if field not in names(schemas.RunnerConfig):
            yield f"runner.{field}"
    for name, base in BASES.items():
        yield from (f"{name}.{field}" for field in names(base))
        configs = [plugins.find(name, kind).config for kind in plugins.names(name)]
        own = [schema for schema in configs if schema.__module__.startswith("htsrl_cli.")]
        for schema in [*own, *([kinds.OwnNetworkConfig] if name == "network" else [])]:
            yield from (f"{name}.{field}" for field in names(schema) if field not in names(base))


def test_every_key_is_in_the_reference_and_vice_versa() -> None:
    described = Counter(re.findall(r'<a id="[^"]+"></a>`([^`]+)`', page("keys.md")))
    assert described - Counter(OF_THE_COMMAND) == Counter(keys_of_dataclasses())
    anchors = Counter(re.findall(r'<a id="([^"]+)">', page("keys.md")))
    assert set(anchors.values()) == {1}


def test_the_values_of_auto_are_explained() -> None:
    explained = first_column(section(page("keys.md"), "## The value `auto`"))
    chosen = {".".join(key) for key in CHOICES}
    resolved_later = {"actors.device", "learner.device", "actors.host"}
    assert set(explained) == chosen | resolved_later


def test_exit_codes() -> None:
    rows = section(page("commands.md"), "## Exit codes")
    signals = {128 + number for number in STOP_SIGNALS}
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", rows, re.MULTILINE)}
    assert codes == {0, HtsrlError.exit_code, UsageError.exit_code} | signals


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tiny run of each algorithm, the first with a line of an evaluation."""
    folders, log_config = [], sections.log(interval=16, tensorboard=False)
    for name, runner in (("ppo", "serial"), ("a2c", "serial"), ("impala", "async")):
        config = sections.train(
            env=sections.synthetic("count", episode_length=5),
            algo=ALGOS[name],
            actors=sections.actors(num_envs=2, inference_batch=2),
            learner=sections.learner(num_threads=1),
            runner=sections.runner(runner, sync_interval=8),
            log=log_config,
            total_steps=64,
        )
        folders.append(tmp_path_factory.mktemp(name))
        run(config, folders[-1])
    evaluation = sections.evaluation(interval=16, targets=(18.0, -2.5))
    with RunLog(folders[0], log_config, {}, 64, 64, evaluation=evaluation) as log:
        log.load_state(log_state(load_checkpoint(find_checkpoint(folders[0]))))
        log.evaluation(64, 1.0, [Episode(3.0, 1.0, 5)])
    return folders


def test_every_metric_is_registered_and_written(runs: list[Path]) -> None:
    lines = [line for folder in runs for line in (folder / "metrics.jsonl").read_text().split("\n")]
    written = {name for line in lines if line for name in json.loads(line)}
    targets = {re.sub(r"_to_(18|-2\.5)$", "_to_TARGET", name) for name in written}
    assert {name for name in written if name.endswith(("_to_18", "_to_-2.5"))}
    # Parts of a loss that only algorithms of other packages have, and a metric of several ranks.
    assert targets == METRICS.keys() - {"loss/PART", "time/exchange"}
    assert all(metric.unit and metric.meaning for metric in METRICS.values())


def test_every_metric_is_in_the_reference() -> None:
    described = re.findall(r'<a id="([^"]+)"></a>`([^`]+)`', page("metrics.md"))
    assert sorted(described) == sorted((name, name) for name in METRICS)


def test_the_summary_is_described(runs: list[Path]) -> None:
    described = set(first_column(section(page("metrics.md"), "## `summary.json`")))
    written = set(json.loads((runs[0] / "summary.json").read_text()))
    evaluated = {"evaluations", "final_metric", "env_steps_to", "seconds_to"}
    assert described == written | evaluated


def test_the_layout_of_a_checkpoint(runs: list[Path]) -> None:
    content = find_checkpoint(runs[0]).read_bytes()
    rows = section(page("checkpoints.md"), "## File layout")
    sizes = [int(size) for size in re.findall(r"^\| (\d+) \|", rows, re.MULTILINE)]
    assert sizes == [8, 4, 8, 32]
    magic, version, length, sha256 = struct.unpack_from("<8sIQ32s", content)
    frame = content[sum(sizes) :]
    assert (magic, version, length) == (MAGIC, FORMAT_VERSION, len(frame))
    assert sha256 == hashlib.sha256(frame).digest()
    assert MAGIC.hex(" ").upper() in rows
    assert f"uint32: {FORMAT_VERSION} " in rows


def test_the_content_of_a_checkpoint(runs: list[Path]) -> None:
    arrays = first_column(section(page("checkpoints.md"), "## Arrays"))
    entries = first_column(section(page("checkpoints.md"), "## The document"))
    for folder in runs:
        checkpoint = load_checkpoint(find_checkpoint(folder))
        assert set(entries) == set(checkpoint.meta)
        for part in checkpoint.meta["parts"]:
            assert f"`{part}`" in page("checkpoints.md")
        found = {general(name) for name in checkpoint.arrays}
        elsewhere = {"slot/...", "slot/masks", "envs/1", "...", "versions/V/PARAMETER"}
        elsewhere |= {"learner/discounted_returns", "slot/memories", "envs/memories"}
        described = set(arrays) - elsewhere
        is_free = checkpoint.meta["config"]["runner"]["name"] == "async"
        assert found == {name for name in described if not (is_free and name.startswith("slot/"))}


def general(name: str) -> str:
    """Returns the name that the reference has for an array."""
    part, _, rest = name.partition("/")
    if part == "learner":
        of, _, _ = rest.partition("/")
        return f"learner/{of}/{'QUANTITY/' if of == 'optimizer' else ''}PARAMETER"
    return re.sub(r"^envs/\d+$", "envs/0", name)
