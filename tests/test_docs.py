"""The pages: links lead somewhere, long ones have contents, figures are those of the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.harness.jobs import RESULTS
from benchmarks.quality.compare.overview import DOCS, entries, filled

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
LINES = 120  # two screens


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def headings(page: Path) -> list[str]:
    """Of a page, without what looks like one in its programs."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text)
    for path, part in [
        *links,
        *((each, "") for each in re.findall(r'src(?:set)?="([^"]+)"', text)),
    ]:
        target = page.parent / path if path else page
        assert target.exists(), path
        if part:
            assert part in map(anchor, headings(target)), f"{path}#{part}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_long_page_has_contents(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    listed = re.findall(r"^Contents: .*?\n\n", text, flags=re.MULTILINE | re.DOTALL)
    if not listed:
        assert len(text.splitlines()) <= LINES
        return
    parts = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert re.findall(r"\[(.+?)\]\(#", listed[0]) == parts


def test_the_table_of_the_results_is_of_its_rows() -> None:
    """Write it anew: python -m benchmarks.quality.compare.overview."""
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert filled(text) == text


def paragraphs(page: Path) -> list[tuple[str, str]]:
    """Those that link to one result, with its name; a table belongs to the words before it."""
    found = []
    text = page.read_text(encoding="utf-8")
    written = re.sub(r"<!-- \w+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
    for block in re.split(r"\n\n(?!\|)", written):
        names = re.findall(r"results/(\w+)\.md\)", block)
        found += [(block, names[0])] if len(names) == 1 else []
    return found


def test_figures_in_words_are_those_of_the_result_they_link_to() -> None:
    known = paragraphs(DOCS / "results.md")
    assert {"network", "published", "faults"} <= {name for _, name in known}
    for block, result in known:
        there = (RESULTS / f"{result}.md").read_text(encoding="utf-8").replace(",", "")
        figures = [float(each) for each in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)", there)]
        for figure in re.findall(r"(?<![\w.\-/])\d+\.\d+(?!\w)", block):
            digits = len(figure.split(".")[1])
            assert figure in [f"{each:.{digits}f}" for each in figures], f"{result}: {figure}"


def test_ranks_that_died_are_counted() -> None:
    page, there = (DOCS / "results.md").read_text(), (RESULTS / "elastic.md").read_text()
    said = re.search(
        r"(\d+) runs lost .*?; (\d+) went on .*?, (\d+) stopped .*? (\d+)\s", page, re.S
    )
    assert said is not None
    assert re.search(rf"^\| all \| {' . '.join(said.groups())} \|", there, flags=re.MULTILINE)


def test_answers_have_measured_figures() -> None:
    answer = (DOCS / "faq.md").read_text(encoding="utf-8")
    loses = re.search(
        r"ResNet loses (\d+) points from N = 8 to 16, the Transformer (\S+) nats", answer
    )
    assert loses is not None
    for name, said, form in (("resnet", loses[1], ".0f"), ("transformer", loses[2], ".2f")):
        few, many = (entries("beyond", name, ranks)["apts"] for ranks in (8, 16))
        assert f"{few.score - many.score:{form}}" == said
