"""The docs say what the code says: the settings table, the drawn floors, the links.

`python -m tests.test_docs` writes docs/settings.md anew.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import portico
from portico import _tls_options, errors, events, settings
from portico._certified import Certified
from portico._managed import Managed
from portico._on_loop import OnLoop
from portico._openable import Openable
from portico._serving import Serving
from portico._setting import SAME
from portico.opening_settings import OPENING_SETTINGS

from .test_house_rules import FLOORS

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
HEAD = """# Settings

Each is a class variable, a keyword argument of every server class that has it, and `--set NAME=VALUE` of
`portico serve`; it may be set on your class, or on the instance before `super().__init__()`, as in `socketserver`.
Wrong values are refused wherever they are set, each by its name; only `allow_reuse_address`, `allow_reuse_port`,
`daemon_threads` and `block_on_close` may be anything that is true or false as attributes, as ever.

This page is made from the declarations in `portico/settings.py`.

| setting | unit | default | `socketserver`'s | allowed | why |
|---|---|---|---|---|---|
"""


def page() -> str:
    def shown(value: object) -> str:
        return "none" if value is None else str(value).lower()

    rows = ""
    for setting in settings.ALL.values():
        stdlib = shown(setting.stdlib) if setting.stdlib is not SAME else ""
        cells = f"`{setting.name}`", setting.unit, shown(setting.default), stdlib, setting.kind.allowed, setting.reason
        rows += f"| {' | '.join(cells)} |\n"
    return HEAD + rows


def test_the_settings_page_is_what_the_declarations_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == page()


def test_class_variables_are_what_the_declarations_say() -> None:
    classes = [Managed, Serving, portico.BaseServer, portico.UDPServer, portico.ThreadingMixIn, portico.ForkingMixIn]
    classes += [OnLoop, portico.GreenMixIn, Certified, Openable]
    for setting in settings.ALL.values():
        owner = next(cls for cls in classes if setting.name in vars(cls))
        assert vars(owner)[setting.name] == setting.default, setting.name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_design_page_names_every_room() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    assert not [name for names in FLOORS for name in names if f"`{name}`" not in text]


def test_the_compatibility_page_names_every_default_that_differs() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text()
    different = [setting.name for setting in settings.ALL.values() if setting.stdlib is not SAME]
    assert not [name for name in different if f"`{name}`" not in text]


def test_the_udp_page_names_every_setting_of_datagrams() -> None:
    text = (ROOT / "docs" / "udp.md").read_text()
    names = ["max_packet_size", *(setting.name for setting in settings.DATAGRAM_SETTINGS)]
    assert not [name for name in names if name not in text]


def test_the_pages_of_tls_and_identity_name_all_that_there_is() -> None:
    tls, identity = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("tls", "identity"))
    command = argparse.ArgumentParser()
    _tls_options.add(command)
    options = [word for action in command._actions for word in action.option_strings if word.startswith("--tls")]
    known = [*portico.TLS.__slots__, *portico.TLSInfo.__slots__, *_public(portico.PeerCertificate), *options]
    assert not [name for name in known if name not in tls and not name.startswith("_")]
    known = [*portico.Client.__slots__, *_public(portico.Client), *_public(portico.ProxyHeader)]
    assert not [name for name in known if name not in identity and name not in ("local", "transport", "version")]
    named = [setting.name for setting in OPENING_SETTINGS]
    assert not [name for name in [*named, "allow_uids", "allow_gids"] if f"`{name}" not in tls + identity]


def _public(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if isinstance(value, property)]


def test_the_page_of_errors_names_every_event_and_every_error() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    names = [name for name in events.__all__ if name not in ("Event", "EndReason")]
    names += [name for name in errors.__all__ if isinstance(getattr(errors, name), type) and name != "Outcome"]
    assert not [name for name in names if f"`{name}`" not in text and name != "PorticoError"]


def test_the_readmes_figures_are_those_that_were_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "@@" not in readme
    measured = (ROOT / "bench" / "results.md").read_text() + (ROOT / "docs" / "benchmarks.md").read_text()
    rows = re.findall(r"^\| .* \| ([\d.,]+)[ \w/]* \| ([\d.,]+)[ \w/]* \|$", readme, re.MULTILINE)
    assert len(rows) == 5
    assert not [figure for row in rows for figure in row if not re.search(rf"(?<![\d.,]){figure}(?![\d.,])", measured)]


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(page())
