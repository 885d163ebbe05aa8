"""Checks of the source code that no other tool makes: imports, sizes and configuration keys.

    executor    importing the executor loads neither torch nor hydra nor omegaconf
    sizes       no file, class or function is too long; not too many top-level modules
    keys        every field of a section's dataclass is read somewhere and is a key in every YAML
                file of its section; every YAML key is a field

Prints one line for each violation; the exit code is 1 if there is any. import-linter checks the
layers of packages; its contracts are in pyproject.toml.
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from omegaconf import DictConfig

from htsrl_cli import plugins
from htsrl_cli.cli.compose import Composer
from htsrl_cli.config import sections as schemas

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "htsrl_cli"
HEAVY = {"torch", "hydra", "omegaconf"}
MOST_LINES: dict[type[ast.AST], int] = {ast.Module: 400, ast.ClassDef: 300, ast.FunctionDef: 60}
MOST_TOP_MODULES = 10
# These keys choose the dataclass of a section (`plugins.SECTIONS`); other code need not read them.
SELECTORS = {tag for tag, _ in plugins.SECTIONS.values()}
# Modules that handle all keys alike. A field that only they read counts as unread.
KEY_HANDLERS = {"config.plain", "config.rules"}


def main() -> int:
    """Runs all checks and prints the violations; returns the exit code."""
    modules = {module_name(path): parse(path) for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    problems = [
        *heavy_executor(),
        *oversized(modules),
        *unread_fields(modules),
        *yaml_mismatches(),
    ]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def module_name(path: Path) -> str:
    """Returns a module's name within the package: `envs.state` for htsrl_cli/envs/state.py."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def parse(path: Path) -> ast.Module:
    """Returns the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def heavy_executor() -> Iterator[str]:
    """Yields a problem if importing the executor fails or loads heavy packages."""
    code = (
        f"import sys, {PACKAGE}.sampling.executor; "
        f"print(*sorted({HEAVY} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if run.returncode or run.stdout.strip():
        yield f"executor: heavy or failing import: {run.stdout.strip() or run.stderr.strip()}"


def oversized(modules: dict[str, ast.Module]) -> Iterator[str]:
    """Yields a problem for each file, class or function that is too long.

    Also yields a problem if there are too many top-level modules.
    """
    for name, tree in modules.items():
        for node in ast.walk(tree):
            most = MOST_LINES.get(type(node))
            if most is None:
                continue
            last = tree.body[-1] if isinstance(node, ast.Module) and tree.body else node
            lines = (getattr(last, "end_lineno", 0) or 0) - getattr(node, "lineno", 1) + 1
            if lines > most:
                what = getattr(node, "name", "the file")
                yield f"{name}: {what} has {lines} lines, more than the limit of {most}"
    top = [path.name for path in (ROOT / PACKAGE).glob("*.py")]
    if len(top) > MOST_TOP_MODULES:
        yield f"{PACKAGE}: {len(top)} top-level modules, more than the limit of {MOST_TOP_MODULES}"


def unread_fields(modules: dict[str, ast.Module]) -> Iterator[str]:
    """Yields a problem for each field of a section's dataclass that no module reads."""
    read = {
        node.attr
        for name, tree in modules.items()
        if name not in KEY_HANDLERS
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for schema in dataclasses_of_sections():
        for field in sorted(section_fields(schema) - read - SELECTORS):
            yield f"{schema.__module__}: nothing reads {schema.__name__}.{field}"


def yaml_mismatches() -> Iterator[str]:
    """Yields a problem for each field without a YAML key, and for each YAML key without a field."""
    composer = Composer("train")
    for group in ("env", "algo", "network", "actors", "learner", "runner", "experiment"):
        for option in composer.group_options(group):
            choice = f"{group}={option}"
            cfg = composer.job([choice])
            yield from compare(choice, cfg, section_fields(schemas.TrainConfig))
            for name, fields in sections(cfg).items():
                yield from compare(f"{choice}: {name}", cfg[name], fields)
    yield from compare("eval.yaml", Composer("eval").job([]), section_fields(schemas.EvalConfig))
    bench = Composer("bench").job([])["bench"]
    yield from compare("bench.yaml: bench", bench, section_fields(schemas.BenchConfig))


def dataclasses_of_sections() -> Iterator[type]:
    """Yields all configuration dataclasses, also those of each kind of env, algo and network."""
    for name, schema in vars(schemas).items():
        if isinstance(schema, type) and name.endswith("Config"):
            yield schema
    for section in plugins.SECTIONS:
        for name in plugins.names(section):
            yield plugins.find(section, name).config


def sections(cfg: DictConfig) -> dict[str, set[str]]:
    """Returns the field names of each section of a `htsrl train` configuration, by section."""
    hints = get_type_hints(schemas.TrainConfig)
    plain = {
        name: hint.schema(cfg[name]) if hasattr(hint, "schema") else hint
        for name, hint in hints.items()
        if isinstance(hint, type)
        and dataclasses.is_dataclass(hint)
        and name not in plugins.SECTIONS
    }
    chosen = {
        name: plugins.find(name, cfg[name][tag]).config
        for name, (tag, _) in plugins.SECTIONS.items()
    }
    return {name: section_fields(schema) for name, schema in (plain | chosen).items()}


def section_fields(schema: type) -> set[str]:
    """Returns the names of a dataclass's fields."""
    return {field.name for field in dataclasses.fields(schema)}


def compare(where: str, cfg: DictConfig, fields: set[str]) -> Iterator[str]:
    """Yields a problem for each key of `cfg` without a field, and for each field without a key.

    The keys `hydra` and `resume` need no field.
    """
    keys = {str(key) for key, _ in cfg.items_ex(resolve=False)} - {"hydra", "resume"}
    for key in sorted(keys ^ fields):
        side = "no field in the dataclass" if key in keys else "no key in the YAML file"
        yield f"{where}: {key}: {side}"


if __name__ == "__main__":
    sys.exit(main())
