"""Mistakes of users: exit code 2, one line that helps, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Htsrl
from tests.harness import NO_FOOTBALL
from tests.integration.refusals import assert_refused

# Arguments of `htsrl train`, and what the error must contain: key and value, remedy.
TRAIN = {
    "mistyped key": (["algo.learning_rat=1"], "algo.learning_rat=1", "algo.learning_rate?"),
    "key without its section": (["gamma=0.9"], "gamma=0.9", "did you mean algo.gamma?"),
    "another library's name of a key": (
        ["lr=1e-3"],
        "lr=0.001",
        "did you mean algo.learning_rate?",
    ),
    "another library's name in a section": (
        ["algo.ent_coef=0.1"],
        "algo.ent_coef=0.1",
        "did you mean algo.entropy_coef?",
    ),
    "another library's length of a run": (
        ["total_timesteps=1000"],
        "total_timesteps=1000",
        "did you mean total_steps?",
    ),
    "key as a flag": (["--seed", "1"], "--seed", "seed=1"),
    "key as a flag with its value": (["--total-steps=1000"], "--total-steps", "total_steps=1000"),
    "another library's flag": (["--learning-rate", "1e-3"], "--lear", "algo.learning_rate=1e-3"),
    "Gymnasium id as an option": (
        ["env=CartPole-v1"],
        "env=CartPole-v1",
        "write it as env=gym env.id=CartPole-v1",
    ),
    "id with a module as an option": (
        ["env=my_envs:Mine-v0"],
        "env=my_envs:Mine-v0",
        "write it as env=gym env.id=my_envs:Mine-v0",
    ),
    "id of an Atari game as an option": (
        ["env=ALE/SpaceInvaders-v5"],
        "env=ALE/SpaceInvaders-v5",
        "write it as env=atari/space_invaders",
    ),
    "unknown version of an Atari game": (
        ["env=gym", "env.id=PongNoFrameskip-v4"],
        "env.id=PongNoFrameskip-v4",
        "env=atari/pong",
    ),
    "algorithm by its key": (["algo.name=a2c"], "algo.name=a2c", "write it as algo=a2c"),
    "network by its key": (
        ["network.name=nature_cnn"],
        "network.name=nature_cnn",
        "write it as network=nature_cnn",
    ),
    "kind of environment by its key": (
        ["env.kind=football"],
        "env.kind=football",
        "write it as env=football/NAME",
    ),
    "id without env=gym": (
        ["env.id=CartPole-v1"],
        "env.id=CartPole-v1",
        "write env=gym env.id=CartPole-v1",
    ),
    "id without a version": (
        ["env=gym", "env.id=CartPole"],
        "env.id=CartPole",
        "name the version: CartPole-v1",
    ),
    "settings of another algorithm": (
        ["algo=a2c", "tuned=ppo/CartPole-v1"],
        "tuned=ppo/CartPole-v1",
        "is for algo=ppo",
    ),
    "removed key": (["~seed"], "~seed", "cannot be removed"),
    "removed group": (["~env"], "~env", "cannot be removed"),
    "removed group with a value": (["~algo=ppo"], "~algo=ppo", "cannot be removed"),
    "removed preset": (["~experiment"], "~experiment", "cannot be removed"),
    "removed unknown key": (["~sede"], "~sede", "cannot be removed"),
    "removed key of hydra": (["~hydra.run.dir"], "~hydra.run.dir", "cannot be removed"),
    "key of another environment": (
        ["env.id=Pong-v5"],
        "env.id=Pong-v5",
        "write env=gym env.id=Pong-v5",
    ),
    "key of another algorithm": (
        ["algo=a2c", "algo.clip_coef=0.1"],
        "algo.clip_coef=0.1",
        "no such key",
    ),
    "replaced key": (["algo.reevaluate=true"], "algo.reevaluate=true", "algo.correction=proximal"),
    "unknown correction": (
        ["algo.correction=decopled"],
        "algo.correction=decopled",
        "did you mean decoupled?",
    ),
    "weight below 1": (["algo.max_weight=0.5"], "algo.max_weight=0.5", "at least 1"),
    "added key": (["+seeed=1"], "seeed=1", "did you mean seed?"),
    "added preset": (
        ["+experiment=cartpole_ppo"],
        "experiment=cartpole_ppo",
        "experiment=cartpole_ppo: write it without the +",
    ),
    "added option": (["+algo=a2c"], "algo=a2c", "algo=a2c: write it without the +"),
    "option added by force": (
        ["++env=gym", "env.id=CartPole-v1"],
        "env=gym",
        "env=gym: write it without the ++",
    ),
    "added plugin": (
        ["+hydra/launcher=joblib"],
        "hydra/launcher=joblib",
        "hydra/launcher=joblib: write it without the +",
    ),
    "added key that there is": (["+seed=3"], "seed=3", "seed=3: write it without the +"),
    "mistyped hydra key": (["hydra.run.dri=x"], "hydra.run.dri=x", "hydra.run.dir?"),
    "mistyped group": (["algos=ppo"], "algos=ppo", "did you mean algo?"),
    "mistyped option": (["env=atari/pnog"], "env=atari/pnog", "did you mean atari/pong?"),
    "unknown algorithm": (["algo=dqn"], "algo=dqn", "a2c, impala, ppo"),
    "unknown preset": (["experiment=atari_pp"], "experiment=atari_pp", "atari_ppo?"),
    "option of a nested group": (["env/atari=pong"], "env/atari=pong", "env=atari/pong"),
    "new argument of an environment": (
        ["env=gym", "env.id=CartPole-v1", "env.kwargs.sutton=true"],
        "env.kwargs.sutton=true",
        "+env.kwargs.sutton=true",
    ),
    "folder as an option": (["env=atari"], "env=atari", "atari/assault"),
    "option that is not there": (["tuned=off"], "tuned=off", "(auto, none; all: htsrl list tuned)"),
    "number as an option": (["env=3"], "env=3", "no such option"),
    "no value": (["seed"], "seed", "KEY=VALUE"),
    "run folder without a key": (["/tmp"], "/tmp", "resume=/tmp or checkpoint=/tmp"),
    "malformed list": (["network.hidden_sizes=[64"], "network.hidden_sizes=[64", "quote"),
    "unknown flag": (["--fast"], "--fast", "--hydra-help"),
    "missing mandatory value": (["env=gym"], "env.id=???", "env.id=..."),
    "text for a number": (["actors.num_envs=many"], "actors.num_envs=many", "an integer"),
    "fraction for a count": (["actors.num_envs=2.5"], "actors.num_envs=2.5", "an integer"),
    "number for a switch": (["log.tensorboard=1"], "log.tensorboard=1", "true or false"),
    "switch for a number": (["seed=true"], "seed=true", "an integer"),
    "null": (["total_steps=null"], "total_steps=null", "an integer"),
    "number for a list": (["network.hidden_sizes=64"], "network.hidden_sizes=64", "[A,B]"),
    "empty list": (["network.hidden_sizes=[]"], "network.hidden_sizes=()", "positive sizes"),
    "not a number": (["algo.learning_rate=nan"], "algo.learning_rate=nan", "greater than 0"),
    "infinite": (["algo.max_grad_norm=inf"], "algo.max_grad_norm=inf", "finite"),
    "negative rate": (["algo.learning_rate=-1e-4"], "algo.learning_rate=-0.0001", "greater"),
    "discount above one": (["algo.gamma=1.1"], "algo.gamma=1.1", "between 0.0 and 1.0"),
    "no environments": (["actors.num_envs=0"], "actors.num_envs=0", "between 1 and"),
    "seed too large": ([f"seed={2**63}"], f"seed={2**63}", "2**63 - 1"),
    "unknown precision": (["learner.precision=fp16"], "learner.precision=fp16", "fp32, bf16"),
    "unknown device": (["actors.device=gpu"], "actors.device=gpu", "cuda:N"),
    "unknown host": (["actors.host=threads"], "actors.host=threads", "did you mean thread?"),
    "no checkpoint kept": (["checkpoint.keep=0"], "checkpoint.keep=0", "between 1 and"),
    "negative evaluation interval": (["eval.interval=-1"], "eval.interval=-1", "between 0 and"),
    "evaluation after the end": (
        ["total_steps=5000", "eval.interval=6145"],
        "eval.interval=6145",
        "6144 or less",
    ),
    "no evaluation episode": (["eval.episodes=0"], "eval.episodes=0", "between 1 and"),
    "number for a list of targets": (["eval.targets=18"], "eval.targets=18", "[A,B]"),
    "target that is no number": (["eval.targets=[nan]"], "eval.targets=(nan,)", "finite scores"),
    "small screen": (["env.screen_size=20"], "env.screen_size=20", "between 36 and"),
    "more executors than environments": (
        ["actors.num_envs=2", "actors.num_executors=8"],
        "actors.num_executors=8",
        "must be at most actors.num_envs=2: each executor needs one",
    ),
    "actors of the baseline": (
        ["runner=sync", "actors.num_actors=2"],
        "actors.num_actors=2",
        "runner=sync",
    ),
    "minibatches that do not divide": (
        ["algo.num_minibatches=3"],
        "algo.num_minibatches=3",
        "give 1, for example",
    ),
    "minibatches that do not divide players' rows": (
        ["env=synthetic/sleep", "env.num_players=3", "algo.num_minibatches=80"],
        "algo.num_minibatches=80",
        "must divide 6144 = runner.sync_interval x actors.num_envs x players: give 16, for example",
    ),
    "minibatches that do not divide a policy's rows": (
        [
            "env=synthetic/sleep",
            "env.num_players=3",
            "algo.policies=independent",
            "algo.num_minibatches=3",
        ],
        "algo.num_minibatches=3",
        "must divide 2048 = runner.sync_interval x actors.num_envs: give 1, for example",
    ),
    "no synthetic players": (
        ["env=synthetic/sleep", "env.num_players=0"],
        "env.num_players=0",
        "between 1 and",
    ),
    "unknown policies": (["algo.policies=each"], "algo.policies=each", "shared, independent"),
    "players of another environment": (
        ["env.num_left_players=2"],
        "env.num_left_players=2",
        "no such key",
    ),
    "mistyped scenario": (
        ["env=football/academy_3_vs_1_with_keper"],
        "env=football/academy_3_vs_1_with_keper",
        "did you mean football/academy_3_vs_1_with_keeper?",
    ),
    "mistyped scenario key": (
        ["env=football/5_vs_5", "env.scenario=5_vs_6"],
        "env.scenario=5_vs_6",
        "did you mean 5_vs_5?",
    ),
    "unknown representation": (
        ["env=football/5_vs_5", "env.representation=simple115"],
        "env.representation=simple115",
        "did you mean simple115v2?",
    ),
    "unknown rewards": (
        ["env=football/5_vs_5", "env.rewards=scoring+checkpoints"],
        "env.rewards=scoring+checkpoints",
        "scoring",
    ),
    "nobody plays": (
        ["env=football/5_vs_5", "env.num_left_players=0"],
        "env.num_left_players=0",
        "no player is controlled: give 1 or more",
    ),
    "right side's pixels": (
        ["env=football/5_vs_5", "env.representation=pixels", "env.num_right_players=1"],
        "env.num_right_players=1",
        "must be 0 with env.representation=pixels",
    ),
    "two rendered environments in an executor": (
        [
            "env=football/5_vs_5",
            "env.representation=pixels_gray",
            "actors.num_envs=4",
            "actors.num_executors=2",
        ],
        "actors.num_executors=2",
        "must equal actors.num_envs=4 with env.representation=pixels_gray",
    ),
    "two rendered environments in one process": (
        [
            "env=football/5_vs_5",
            "env.representation=pixels",
            "actors.num_envs=2",
            "runner=serial",
        ],
        "actors.num_envs=2",
        "runner=serial allows only 1",
    ),
    "run without an update": (["total_steps=2048"], "total_steps=2048", "more than 2048"),
    "broken interpolation": (["seed=${sede}"], "seed=${sede}", "sede"),
    "nothing to resume": (["resume=nowhere"], "nowhere", "does not exist"),
    "unknown name in a folder": (["hydra.run.dir=a/${nope}"], "hydra.run.dir=a/${nope}", "'nope'"),
    "automatic resume without a folder": (["resume=auto"], "resume=auto", "hydra.run.dir=RUN_DIR"),
    "folder below a file": (
        ["hydra.run.dir=/dev/null/run"],
        "hydra.run.dir=/dev/null/run",
        "choose another",
    ),
    "no configuration folder": (["--config-dir", "nowhere"], "nowhere", "no such folder"),
    # The environments' packages find the following mistakes.
    "unknown game": (["env.game=pongg"], "env.game=pongg", ""),
    "unknown Gymnasium id": (["env=gym", "env.id=CartPole-v99"], "env.id=CartPole-v99", ""),
    "unknown module of an id": (["env=gym", "env.id=no_module:X-v0"], "env.id=no_module:X-v0", ""),
}
EVAL = {
    "no checkpoint": ([], "checkpoint=???", "checkpoint=..."),
    "no episodes": (["checkpoint=x", "episodes=0"], "episodes=0", "between 1 and"),
    "mistyped key of eval": (["checkpoint=x", "episode=1"], "episode=1", "episodes?"),
    "nothing to evaluate": (["checkpoint=nowhere"], "nowhere", "does not exist"),
}
BENCH = {
    "no rounds": (["bench.repeats=0"], "bench.repeats=0", "between 1 and"),
    "no time": (["bench.seconds=0"], "bench.seconds=0.0", "greater than 0"),
    "unknown runner": (["bench.runners=[asink]"], "bench.runners=", "hts, serial, sync and async"),
    "actors of the baseline": (["actors.num_actors=2"], "actors.num_actors=2", "runner=sync"),
    "mistyped key of bench": (["bench.repeat=1"], "bench.repeat=1", "bench.repeats?"),
    "mistyped key of training": (["algo.gama=1"], "algo.gama=1", "algo.gamma?"),
}
COMMANDS = {
    "no verb": ([], "train or eval or bench", "--help"),
    "mistyped verb": (["trian"], "trian", "did you mean train?"),
}
CASES = (
    {name: (["train", *words], *said) for name, (words, *said) in TRAIN.items()}
    | {name: (["eval", *words], *said) for name, (words, *said) in EVAL.items()}
    | {name: (["bench", *words], *said) for name, (words, *said) in BENCH.items()}
    | COMMANDS
)


@pytest.mark.parametrize(("words", "said", "remedy"), CASES.values(), ids=CASES)
def test_refused_in_one_line(
    htsrl: Htsrl, tmp_path: Path, words: list[str], said: str, remedy: str
) -> None:
    assert_refused(htsrl(*words), said, remedy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("mine:Nope-v0", "the module mine registers Mine-v0, Mine-v1"),
        ("empty:Mine-v0", "the module empty registers no environment: call gymnasium.register"),
    ],
)
def test_unknown_id_of_a_module(htsrl: Htsrl, tmp_path: Path, env_id: str, words: str) -> None:
    register = "gymnasium.register('Mine-v{}', 'mine:Mine')\n"
    text = "import gymnasium\n" + "".join(register.format(version) for version in range(2))
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "empty.py").write_text("")
    refused = htsrl("train", "env=gym", f"env.id={env_id}")
    assert_refused(refused, f"env.id={env_id}", words)


def test_environment_that_cannot_be_built_leaves_no_folder(htsrl: Htsrl, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0\n")
    run = htsrl("train", "env=gym", "env.id=mine:Mine-v0", cwd=tmp_path)
    assert run.returncode == 1
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert f'File "{tmp_path / "mine.py"}", line 1' in run.stderr
    assert run.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--cfg", "job"],
        ["train", "--help"],
        ["train", "--info", "config"],
        ["train", "-m", "seed=1,2"],
        ["train", "-m", "sweeper=optuna"],
        ["eval", "checkpoint=x"],
        ["eval", "--help"],
        ["bench"],
        ["bench", "-m"],
        ["bench", "--cfg", "all"],
    ],
)
def test_removal_is_refused_everywhere(htsrl: Htsrl, words: list[str]) -> None:
    assert_refused(htsrl(*words, "~seed"), "~seed: keys and groups cannot be removed")


MODULE = """
import gymnasium
from gymnasium.spaces import Box, Discrete, Text


class Env(gymnasium.Env):
    observation_space = Text(8)
    action_space = Discrete(2)


class MissingPackage(gymnasium.Env):
    def __init__(self):
        import package_that_is_not_there


gymnasium.register("Text-v0", Env)
gymnasium.register("Missing-v0", MissingPackage)
"""


@pytest.mark.parametrize("name", ["Text-v0", "Missing-v0"])
def test_environment_that_cannot_be_used(htsrl: Htsrl, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    assert_refused(htsrl("train", "env=gym", f"env.id=mine:{name}"), f"env.id=mine:{name}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["env=football/academy_3_vs_1_with_keeper", "env.num_left_players=5"],
            "env.num_left_players=5: must be at most 4, the number of controllable players on",
        ),
        (
            ["env=football/1_vs_1_easy", "env.num_right_players=2"],
            "env.num_right_players=2: must be at most 1, the number of controllable players on",
        ),
    ],
)
def test_more_players_than_a_scenario_has(
    htsrl: Htsrl, tmp_path: Path, words: list[str], said: str
) -> None:
    pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    assert_refused(htsrl("train", *words), said)
    assert list(tmp_path.iterdir()) == []


def test_missing_gpu(htsrl: Htsrl) -> None:
    run = htsrl("train", "env=synthetic/count", "actors.device=cuda:99")
    assert_refused(run, "actors.device=cuda:99")


def test_too_little_shared_memory(htsrl: Htsrl) -> None:
    sizes = ["actors.num_envs=1_048_576", "runner.sync_interval=1024", "total_steps=1e10"]
    assert_refused(htsrl("train", *sizes), "num_envs")
