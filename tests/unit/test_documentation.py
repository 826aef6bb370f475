"""The documentation leads where it says, and names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for where in ("docs", "local", "examples") for page in (ROOT / where).rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_title_in_it(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for file, _, anchor in (link.partition("#") for link in links if not link.startswith("http")):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def anchors(page: Path) -> list[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_interfaces_in_the_contracts_are_the_trainers() -> None:
    contracts = (ROOT / "docs" / "contracts.md").read_text()
    section = contracts[contracts.index("## 7.") : contracts.index("## 8.")]
    said = {name for code in re.findall(r"`([^`\n]+)`", section) for name in re.findall(r"[A-Za-z_]\w{3,}", code)}
    sources = "\n".join(path.read_text() for path in (ROOT / "trainer_image").rglob("*.py"))
    assert said - set(re.findall(r"[A-Za-z_]\w*", sources)) == set()
