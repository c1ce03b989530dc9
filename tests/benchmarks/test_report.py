"""The page: a browser shows it without complaint, and Markdown beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from benchmarks.__main__ import main
from benchmarks.harness.rows import read
from benchmarks.harness.sections import to_markdown
from benchmarks.report import command as report
from tests.benchmarks.report_rows import (
    compared,
    everything,
    micro,
    network,
    projection,
    strong_pair,
    written,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report on rows of every kind."""
    folder = tmp_path_factory.mktemp("report")
    assert (
        main(["report", str(written(folder / "all.jsonl", everything())), "--out", str(folder)])
        == 0
    )
    return folder


HOSTILE = "<script>alert(1)</script>|`](javascript:x)&$\\frac{\x00\u202e$\"'"


def test_hostile_names(tmp_path: Path) -> None:
    """Names of any kind stay text: in the page, in pictures, and in Markdown's tables."""
    rows = strong_pair(method="apts" + HOSTILE)
    rows += [{**row, "host": HOSTILE, "commit": HOSTILE} for row in micro()[:22]]
    rows += network({"apts": 1.0, HOSTILE: 2.0}, HOSTILE)
    rows += projection(HOSTILE, {2: 0.9, 4: 0.7}, HOSTILE)
    rows.append(compared(HOSTILE, 0.9, 10))
    path = written(tmp_path / "hostile<b>.jsonl", rows)
    assert main(["report", str(path), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x00" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    for drawing in re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(re.sub(r"xlink:href", "href", drawing))  # well-formed
    text = "\n\n".join(to_markdown(report.page(read([path])))) + "\n"
    assert "<script" not in text
    assert "](javascript" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, "no cell breaks a table"


class Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all_of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def outline(page: Path) -> Outline:
    parser = Outline()
    parser.feed((page / "report.html").read_text(encoding="utf-8"))
    return parser


def test_page_needs_nothing_else(page: Path) -> None:
    found = outline(page)
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), value
    text = (page / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not found.all_of("script", "iframe", "object", "embed", "base")


def test_page_is_accessible(page: Path) -> None:
    found = outline(page)
    assert found.all_of("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    drawings = [a for a in found.all_of("svg") if a.get("role") == "img"]
    assert len(drawings) == len(found.all_of("figure")) == len(found.all_of("svg"))
    assert all(len(str(a["aria-label"])) > 40 for a in drawings)
    ids = [a["id"] for _, a in found.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    links = [str(a.get("href") or a["xlink:href"])[1:] for a in found.all_of("a", "use")]
    assert set(links) <= set(ids)


def test_the_first_page(page: Path) -> None:
    """The machine, the verdict, a figure a question; then sections that are folded."""
    text = (page / "report.html").read_text(encoding="utf-8")
    assert "<h1>apts_mpi on node, 2 cores</h1>" in text
    first = text[: text.index('<details class="part">')]
    assert "level with the best tuned gradient averaging on 1 of 1 tasks, with 1/20.7 of" in first
    assert "sooner than tuned PyTorch DDP, Adam: 6.8 times over 100 Mbit/s" in first
    assert "Measured on 2 ranks: 92.2 percent efficiency" in first
    figures = ("time-to-accuracy", "accuracy-against-bytes", "efficiency", "where-it-loses")
    assert tuple(re.findall(r'<figure id="([^"]+)"', first)) == figures
    assert "projected, not measured" in first
    assert len(outline(page).all_of("table")) > 10
    assert "<table" not in first
    assert "<strong>Warning:</strong> Communication exceeds compute at N = 2 (SGD)" in text
    assert "apts-auto" not in text


def test_sections_only_where_there_are_rows(tmp_path: Path) -> None:
    rows = read([written(tmp_path / "a.jsonl", network({"apts": 2.0}))])
    titles = [section.title for section in report.page(rows).below]
    assert titles == ["Training over narrow links", "Set-up", "How to read this"]
    assert report.page(rows).title == "apts_mpi"


def test_set_up_is_told(page: Path) -> None:
    text = (page / "report.html").read_text(encoding="utf-8")
    for told_ in ("torch", "2.13", "abc1234", "2026-01-02", "118282", "node", "all.jsonl"):
        assert told_ in text


PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const box = one => one.getBoundingClientRect();
  const bad = [...document.querySelectorAll("figure svg")].filter(
    one => box(one).width < 200 || box(one).height < 80 || !one.querySelector("path"));
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("main *")].filter(one => !one.closest(".scroll, svg")
    && box(one).right > innerWidth + 1);
  parent.postMessage([innerWidth, root.scrollWidth, bad.length, wide.length,
    document.querySelectorAll("figure svg").length].join(" "), "*");
});</script>"""
FRAME = """<!DOCTYPE html><title>phone</title><body><script>
addEventListener("message", event => { document.body.dataset.told = event.data; });
</script><iframe src="probe.html" style="width:390px;height:844px;border:0"></iframe>"""


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document as a headless browser has it after opening a file, and what its console says."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--window-size=390,844", "--enable-logging=stderr"),
        *("--virtual-time-budget=3000", "--dump-dom"),
    ]
    done = subprocess.run(
        [browser, *flags, path.as_uri()], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_browser_opens_the_page(page: Path, tmp_path: Path) -> None:
    """From disk, no complaint in the console, every heading there."""
    shutil.copy(page / "report.html", tmp_path)  # alone, so that nothing beside it can help
    document, console = browse(tmp_path / "report.html", tmp_path / "profile")
    assert console == []
    assert document.count("<h2") == 9
    assert "</html>" in document


def test_page_fits_a_phone(page: Path, tmp_path: Path) -> None:
    """390 pixels: no sideways scrolling, all pictures drawn, everything unfolded."""
    text = (page / "report.html").read_text(encoding="utf-8")
    (tmp_path / "probe.html").write_text(text.replace("</body>", PROBE + "</body>"), "utf-8")
    (tmp_path / "frame.html").write_text(FRAME, "utf-8")
    document, console = browse(tmp_path / "frame.html", tmp_path / "profile")
    assert console == []
    found = re.search(r'data-told="([\d ]+)"', document)
    assert found is not None, "the page did not load in the frame"
    width, needed, undrawn, wide, drawn = map(int, found[1].split())
    assert 370 <= width <= 390
    assert needed <= width
    assert (undrawn, wide) == (0, 0)
    assert drawn == len(outline(page).all_of("figure"))
