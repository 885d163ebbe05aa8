"""Tests of environment, algorithm and network kinds, and of kinds that cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from htsrl_cli import plugins
from htsrl_cli.config.kinds import AlgoConfig, EnvConfig, NetworkConfig, OwnNetworkConfig
from htsrl_cli.config.plain import find_kind
from htsrl_cli.errors import ConfigError

BASES: dict[str, type] = {"env": EnvConfig, "algo": AlgoConfig, "network": NetworkConfig}
OWN = {
    "env": ["atari", "football", "gym", "synthetic"],
    "algo": ["a2c", "ppo"],
    "network": ["auto", "impala_resnet", "mlp", "nature_cnn", "small_cnn"],
}
KINDS = [(section, name) for section, names in OWN.items() for name in names]


def test_every_section_that_chooses_a_kind_has_names() -> None:
    assert plugins.SECTIONS.keys() == OWN.keys()
    for section, own in OWN.items():
        names = plugins.names(section)
        assert names == sorted(names)
        assert set(own) <= set(names)


@pytest.mark.parametrize(("section", "name"), KINDS)
def test_own_kinds_are_found(section: str, name: str) -> None:
    kind = plugins.find(section, name)
    assert issubclass(kind.config, BASES[section])
    assert find_kind(section, name) is kind
    module, _, factory = kind.factory.partition(":")
    assert module.startswith(f"htsrl_cli.{plugins.SECTIONS[section][1].partition('.')[2]}.{name}.")
    assert factory


@pytest.mark.parametrize("section", OWN)
def test_an_unknown_kind_is_refused_with_those_that_exist(section: str) -> None:
    with pytest.raises(LookupError):
        plugins.find(section, "nothing")
    with pytest.raises(ConfigError, match=rf"must be one of .*{OWN[section][0]}") as caught:
        find_kind(section, "nothing")
    assert caught.value.key == f"{section}.{plugins.SECTIONS[section][0]}"


def test_a_network_may_be_named_by_its_module() -> None:
    assert find_kind("network", "mine:Net") == plugins.Kind(OwnNetworkConfig, "mine:Net")
    for section in ("env", "algo"):
        with pytest.raises(ConfigError, match="must be one of"):
            find_kind(section, "mine:Net")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives every group one kind, whose package cannot be imported."""

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint("broken", "no_such_package.config:KIND", group)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    plugins._declared.cache_clear()
    yield
    plugins._declared.cache_clear()


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("section", OWN)
def test_a_kind_whose_package_cannot_be_imported_is_named(section: str) -> None:
    assert plugins.names(section) == ["broken"]
    with pytest.raises(ConfigError, match=r"cannot be imported: .*no_such_package") as caught:
        find_kind(section, "broken")
    assert (caught.value.key, caught.value.value) == (
        f"{section}.{plugins.SECTIONS[section][0]}",
        "broken",
    )
