"""Checks that imports follow the layers, and that configuration keys and YAML files agree.

    layers      a module imports from its own layer or a lower one
    executors   what they import is free of torch, hydra and omegaconf (read, and tried)
    keys        every field of a schema is read somewhere, and stands in every YAML file of its
                section; every YAML key is a field

Prints one line for each violation; the exit code is 1 if there is any.
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from htsrl_cli.cli.compose import Composer
from htsrl_cli.config import sections as schemas
from htsrl_cli.config.plain import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "htsrl_cli"
# From the bottom to the top: packages and modules.
LAYERS = (
    {"errors"},
    {"config"},
    {"durable", "machine", "seeding"},
    {"envs"},
    {"storage", "networks", "checkpoints"},
    {"algorithms", "workers"},
    {"tracking"},
    {"evaluation"},
    {"learning", "sampling"},
    {"bench", "runners", "report"},
    {"cli", "__main__"},
)
HEAVY = {"torch", "hydra", "omegaconf"}
# They choose the schema of a section; schema.VARIANTS names them, nothing else has to.
SELECTORS = {"kind", "name"}
# Modules that handle every key alike, which is no use of one.
KEY_HANDLERS = {"config.plain", "config.rules"}


def main() -> int:
    """Runs all checks; returns the exit code."""
    modules = {module_name(path): parse(path) for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    imports = {name: set(imported(tree)) for name, tree in modules.items()}
    problems = [
        *layer_violations(imports),
        *heavy_executor(imports),
        *unread_fields(modules),
        *yaml_mismatches(),
    ]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def module_name(path: Path) -> str:
    """`envs.atari` for htsrl_cli/envs/atari.py; a package has its folder's name."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all modules that a file imports, inside functions too; not for typing only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            # `from htsrl_cli import runner` imports the module `runner`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def own_imports(names: set[str]) -> set[str]:
    """Those of `names` that are modules of the package, without its name."""
    prefix = f"{PACKAGE}."
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return {name for name in inside if module_path(name).exists()}


def module_path(name: str) -> Path:
    """The file of a module of the package."""
    base = ROOT / PACKAGE / name.replace(".", "/")
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def layer_violations(imports: dict[str, set[str]]) -> Iterator[str]:
    """Imports that go upwards."""
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    for module, names in imports.items():
        top = module.split(".")[0]
        if top == "__init__":
            continue
        if top not in level:
            yield f"{module}: stands in no layer of scripts/check_structure.py"
            continue
        for other in sorted({name.split(".")[0] for name in own_imports(names)} - {top}):
            if level.get(other, 0) > level[top]:
                yield f"{module}: imports {other}, which is above it"


def heavy_executor(imports: dict[str, set[str]]) -> Iterator[str]:
    """Heavy packages within reach of the executor: by reading, and by trying."""
    reached, waiting = set(), ["__init__", "sampling.executor"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        for name in sorted(imports[module]):
            if name.split(".")[0] in HEAVY:
                yield f"{module}: imports {name}, and the executor imports {module}"
        waiting += own_imports(imports[module]) - reached
    code = (
        f"import sys, {PACKAGE}.sampling.executor; "
        f"print(*sorted({HEAVY} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if run.returncode or run.stdout.strip():
        yield f"executor: importing it gives {run.stdout.strip() or run.stderr.strip()}"


def unread_fields(modules: dict[str, ast.Module]) -> Iterator[str]:
    """Fields of the schemas that no module reads as an attribute."""
    read = {
        node.attr
        for name, tree in modules.items()
        if name not in KEY_HANDLERS
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for name, schema in vars(schemas).items():
        if isinstance(schema, type) and name.endswith("Config"):
            for field in sorted(section_fields(schema) - read - SELECTORS):
                yield f"config.py: nothing reads {name}.{field}"


def yaml_mismatches() -> Iterator[str]:
    """Differences between the fields of a section and the keys of its YAML files, both ways."""
    composer = Composer("train")
    for group in ("env", "algo", "actors", "learner", "runner", "experiment"):
        for option in composer.group_options(group):
            choice = f"{group}={option}"
            cfg = composer.job([choice])
            yield from compare(choice, cfg, section_fields(schemas.TrainConfig))
            for name, fields in sections(cfg).items():
                yield from compare(f"{choice}: {name}", cfg[name], fields)
    yield from compare("eval.yaml", Composer("eval").job([]), section_fields(schemas.EvalConfig))


def sections(cfg: DictConfig) -> dict[str, set[str]]:
    """The fields of each section of `train.yaml`."""
    plain = {
        "actors": schemas.ActorsConfig,
        "learner": schemas.LearnerConfig,
        "runner": schemas.RunnerConfig,
        "checkpoint": schemas.CheckpointConfig,
        "log": schemas.LogConfig,
    }
    chosen = {name: variants[cfg[name][tag]] for name, (tag, variants) in VARIANTS.items()}
    return {name: section_fields(schema) for name, schema in (plain | chosen).items()}


def section_fields(schema: type) -> set[str]:
    """Names of the fields of a dataclass."""
    return {field.name for field in dataclasses.fields(schema)}


def compare(where: str, cfg: DictConfig, fields: set[str]) -> Iterator[str]:
    """Names what only one side has; Hydra's section and `resume` belong to the command."""
    keys = {str(key) for key, _ in cfg.items_ex(resolve=False)} - {"hydra", "resume"}
    for key in sorted(keys ^ fields):
        side = "no schema has it" if key in keys else "its YAML file does not"
        yield f"{where}: {key}: {side}"


if __name__ == "__main__":
    sys.exit(main())
