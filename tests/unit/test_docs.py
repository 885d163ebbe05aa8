"""The documentation: pages and links that exist, and commands that can be typed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from htsrl_cli.cli import main as cli
from htsrl_cli.cli.compose import Composer, to_bench_config, to_eval_config, to_train_config
from htsrl_cli.errors import HtsrlError
from tests.pages import DOCS, PAGES, ROOT, commands, prose, words_of

# A command with one of these is not whole.
GAP = re.compile(r"\.\.\.|…|<\w[^>]*>|\b(KEY|VALUE|GROUP|OPTION|VERB)\b")
# Stands for a number; other words in capitals (RUN_DIR, ID) stand for text and compose as they are.
NUMBER = re.compile(r"=([A-Z]+_)?(STEPS|SEED|N)$")
# Options that a package brings that may not be installed.
EXAMPLE = ROOT / "examples" / "plugin" / "htsrl_example" / "configs"
SITE_PACKAGES = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")


# Pages and links.


def nav_files(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for child in entry if isinstance(entry, list) else ():
        yield from nav_files(child)
    for child in entry.values() if isinstance(entry, dict) else ():
        yield from nav_files(child)


def test_the_navigation_names_every_page_once() -> None:
    config: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "mkdocs.yml"))
    files = sorted(nav_files(config["nav"]))
    assert files == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@cache
def anchors(path: Path) -> set[str]:
    """Returns the targets of links into a page: its headings and explicit anchors."""
    text, found = path.read_text("utf-8"), set[str]()
    for heading in re.findall(r"^#{1,6} (.*)$", prose(path), re.MULTILINE):
        title, _, attribute = heading.partition(" {")
        title = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title)
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        # The second heading of a name gets a number.
        while slug in found:
            slug = f"{slug}_1"
        found.add(slug)
        found |= set(re.findall(r"#([\w.-]+)", attribute))
    return found | set(re.findall(r'id="([^"]+)"', text))


def is_anchor(path: Path, name: str) -> bool:
    modules = re.findall(r"^::: (\S+)", path.read_text("utf-8"), re.MULTILINE)
    return name in anchors(path) or any(f"{name}.".startswith(f"{m}.") for m in modules)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        is_broken = not path.exists() or (anchor and path.suffix == ".md")
        if is_broken and not (path.exists() and is_anchor(path, anchor)):
            broken.append(target)
    assert not broken


# Commands.


def typed_commands() -> list[tuple[str, str]]:
    """Yields the commands of all pages, each with the error that it must have."""
    found = {
        (shlex.join(words_of(command)), error)
        for page in PAGES
        for command, error in commands(page, "htsrl")
    }
    return sorted(found)


def reason_to_skip(words: list[str]) -> str:
    """Returns why a command of the documentation cannot be composed here; empty if it can."""
    if any(GAP.search(word) for word in words):
        return "it has a gap to fill"
    if any(word.startswith(("--config-dir", "-cd")) for word in words):
        return "it needs the reader's own files"
    if any(word.startswith("resume=") for word in words) and any("env.id=" in w for w in words):
        return "it needs the run, which has this key"
    pairs = [word.partition("=") for word in words]
    if any((EXAMPLE / group / f"{option}.yaml").exists() for group, _, option in pairs):
        return "it needs examples/plugin"
    return ""


@pytest.mark.parametrize(("command", "error"), typed_commands())
def test_commands_compose(command: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, verb, *words = [NUMBER.sub("=1", word) for word in shlex.split(command)]
    if reason := reason_to_skip([verb, *words]):
        pytest.skip(f"a command of the documentation: {reason}")
    if verb.startswith("-"):
        assert verb in ("--help", "-h", "--version", "-sc")
    elif verb in cli.TOOLS:
        monkeypatch.setattr("htsrl_cli.report.report.write_report", lambda runs, output: None)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        cli.TOOLS[verb](words)
    elif error:
        with pytest.raises(HtsrlError) as caught:
            compose(verb, words)
        assert " ".join(str(caught.value).split()) == error
    else:
        compose(verb, words)


def compose(verb: str, words: list[str]) -> None:
    """Composes `htsrl VERB WORDS ...` and checks its configuration, without running it."""
    args, _ = cli._parse_flags(verb, words)
    if args.help or args.hydra_help:
        return
    composer = Composer(args.config_name or verb)
    is_sweep = args.multirun or composer.is_multirun(args.overrides)
    jobs = composer.sweep(args.overrides)[1] if is_sweep else [composer.job(args.overrides)]
    for job in jobs:
        if verb == "eval":
            to_eval_config(job)
        else:
            to_train_config(job)
        if verb == "bench":
            to_bench_config(job)


def test_commands_are_found() -> None:
    found = typed_commands()
    assert {words_of(command)[1] for command, _ in found} >= cli.TASKS.keys() | cli.TOOLS.keys()
    assert words_of("htsrl list env | head  # all") == ["htsrl", "list", "env"]
    quoted = "htsrl train 'algo.x=tag(log, interval(1e-5, 1e-3))' seed=1 # a sweep"
    assert words_of(quoted)[2:] == ["algo.x=tag(log, interval(1e-5, 1e-3))", "seed=1"]
    skipped = ("env=atari/<game>", "[KEY=VALUE", "checkpoint=...", "experiment=corridor")
    assert all(reason_to_skip([word]) for word in skipped)
    assert not reason_to_skip(["resume=RUN_DIR"])


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    typed = {words_of(c)[1] for page in PAGES for c, _ in commands(page, "make")}
    spans = {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", prose(page))}
    assert typed | spans <= targets


# The site.


@pytest.mark.skipif(
    not all(find_spec(name.partition(".")[0]) for name in SITE_PACKAGES),
    reason="the extra `docs` is not installed (make docs)",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    site = ["--site-dir", str(tmp_path / "site")]
    run = subprocess.run([*command, *site], cwd=ROOT, text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    pages = [path for path in (tmp_path / "site").rglob("*.html") if path.name != "404.html"]
    assert len(pages) == len(list(DOCS.rglob("*.md")))
    # Nothing is loaded from elsewhere when a page is viewed.
    external = re.compile(
        r'<(?:script|img|iframe)[^>]+src="?https?:|<link[^>]+stylesheet[^>]+https?:'
    )
    assert not [path for path in pages if external.search(path.read_text("utf-8"))]
