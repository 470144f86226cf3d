"""A registry finds implementations by name: its own, and those of installed packages."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from entropylong_assets.settings.registry import ExtensionError, Registry, installed_entry_points
from entropylong_assets_tests.extensions import installed, search_path, write_package

GROUP = "entropylong_assets.greetings"
Greeting = Callable[[], str]

BUILT_IN = """
from entropylong_assets_tests.settings.test_registry import current

@current().register("zulu")
def zulu():
    return "built-in zulu"

@current().register("alpha")
def alpha():
    return "built-in alpha"
"""

_registries: list[Registry[Greeting]] = []


def current() -> Registry[Greeting]:
    """The registry of the running test, for the module of its built-in entries."""
    return _registries[-1]


@pytest.fixture
def greetings(tmp_path: Path) -> Iterator[Registry[Greeting]]:
    """A registry whose built-in entries `zulu` and `alpha` are in a module not yet imported."""
    (tmp_path / "built_in_greetings.py").write_text(BUILT_IN)
    registry: Registry[Greeting] = Registry("greeting", GROUP, "built_in_greetings")
    _registries.append(registry)
    with search_path(tmp_path):
        yield registry
    _registries.pop()
    sys.modules.pop("built_in_greetings", None)


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Returns a function that installs a package: its name, its source, and its entry points."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    modules = []

    def install(name: str, source: str, **targets: str) -> None:
        (folder / f"{name}.py").write_text(source)
        modules.append(name)
        points = [EntryPoint(key, f"{name}:{target}", GROUP) for key, target in targets.items()]
        write_package(folder, name, *points)
        installed_entry_points.cache_clear()

    with search_path(folder):
        yield install
    for name in modules:
        sys.modules.pop(name, None)


HELLO = "def hello():\n    return 'hello of another package'\n"


def test_own_entries_are_imported_on_first_use_and_keep_their_order(
    greetings: Registry[Greeting],
) -> None:
    assert "built_in_greetings" not in sys.modules
    assert greetings.names() == ("zulu", "alpha")
    assert greetings["alpha"]() == "built-in alpha"
    assert "zulu" in greetings
    assert "hello" not in greetings


def test_own_names_are_registered_once(greetings: Registry[Greeting]) -> None:
    assert greetings.names()
    with pytest.raises(AssertionError, match="two entries named alpha"):
        greetings.register("alpha")(lambda: "again")


def test_entries_of_another_package_follow_ours_sorted_by_name(
    greetings: Registry[Greeting], package: Callable[..., None]
) -> None:
    package("greetings_one", HELLO, welcome="hello")
    package("greetings_two", HELLO, bonjour="hello")
    assert greetings.names() == ("zulu", "alpha", "bonjour", "welcome")
    assert "welcome" in greetings
    assert greetings["welcome"]() == "hello of another package"
    assert greetings.check("bonjour") == "bonjour"
    assert greetings.check_all(["welcome", "zulu"]) == ("welcome", "zulu")


def test_another_package_is_imported_only_if_its_entry_is_used(
    greetings: Registry[Greeting], package: Callable[..., None]
) -> None:
    """The failure: one broken package makes every name of the registry unusable."""
    package("greetings_broken", "raise RuntimeError('at import')\n", broken="hello")
    assert "broken" in greetings
    assert greetings.check("broken") == "broken"
    assert greetings["zulu"]() == "built-in zulu"
    assert "greetings_broken" not in sys.modules


def test_entry_points_of_other_groups_are_not_seen(greetings: Registry[Greeting]) -> None:
    with installed(EntryPoint("hello", "os:getcwd", "entropylong_assets.others")):
        assert greetings.names() == ("zulu", "alpha")
    with installed(EntryPoint("hello", "os:getcwd", GROUP)):
        assert greetings.names() == ("zulu", "alpha", "hello")
    assert greetings.names() == ("zulu", "alpha"), "the package is still installed"


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("raise RuntimeError('first\\n  second')\n", "hello", "RuntimeError: first second"),
        ("import no_such_module\n", "hello", "ModuleNotFoundError: No module named 'no_such_mod"),
        ("def broken(:\n", "hello", "SyntaxError: "),
        ("", "hello", "AttributeError: "),
    ],
    ids=["raises", "needs another module", "no Python", "no such attribute"],
)
def test_import_error_is_one_line_that_names_the_entry_point(
    greetings: Registry[Greeting],
    package: Callable[..., None],
    source: str,
    target: str,
    reason: str,
) -> None:
    package("greetings_broken", source, broken=target)
    with pytest.raises(ExtensionError) as caught:
        greetings["broken"]
    message = str(caught.value)
    start = "greeting 'broken' of greetings_broken:hello can't be imported ("
    assert message.startswith(start + reason)
    assert message.endswith("); repair or uninstall its package")
    assert "\n" not in message
    assert caught.value.__cause__ is not None


def test_missing_module_is_one_line_that_names_the_entry_point(
    greetings: Registry[Greeting],
) -> None:
    with (
        installed(EntryPoint("lost", "no_such_package.module:Thing", GROUP)),
        pytest.raises(ExtensionError, match=r"^greeting 'lost' of no_such_package\.module:Thing"),
    ):
        greetings["lost"]


def test_name_of_a_built_in_entry_is_refused_for_another_package(
    greetings: Registry[Greeting], package: Callable[..., None]
) -> None:
    package("greetings_clash", HELLO, alpha="hello")
    expected = (
        "greeting 'alpha' of greetings_clash:hello: the name is already in use; rename the entry "
        f"point in group {GROUP}"
    )
    for use in (greetings.names, functools.partial(greetings.check, "other")):
        with pytest.raises(ExtensionError) as caught:
            use()
        assert str(caught.value) == expected
    assert greetings["alpha"]() == "built-in alpha", "the other package replaced it"


def test_one_name_in_two_packages_is_refused(
    greetings: Registry[Greeting], package: Callable[..., None]
) -> None:
    package("greetings_one", HELLO, hello="hello")
    package("greetings_two", HELLO, hello="hello")
    for use in (greetings.names, functools.partial(greetings.__getitem__, "hello")):
        with pytest.raises(ExtensionError, match=r"^greeting 'hello' of greetings_(one|two):hello"):
            use()


def test_unknown_name_is_refused_with_the_known_ones(
    greetings: Registry[Greeting], package: Callable[..., None]
) -> None:
    package("greetings_one", HELLO, welcome="hello")
    expected = "no greeting 'hi'; there are zulu, alpha, welcome"
    with pytest.raises(ExtensionError) as unknown:
        greetings["hi"]
    assert str(unknown.value) == expected
    uses: tuple[Callable[[], object], ...] = (
        lambda: greetings.check("hi"),
        lambda: greetings.check_all(["zulu", "hi"]),
    )
    for use in uses:
        with pytest.raises(ValueError, match=f"^{expected}$"):
            use()


def test_installed_packages_are_looked_up_once(
    greetings: Registry[Greeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the metadata of all packages is slow, and settings are checked very often."""
    lookups = []
    monkeypatch.setattr(
        "entropylong_assets.settings.registry.entry_points",
        lambda group: lookups.append(group) or [],
    )
    for _ in range(3):
        assert "hello" not in greetings
        assert greetings.names() == ("zulu", "alpha")
    assert lookups == [GROUP]
