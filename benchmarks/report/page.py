"""What the report says, apart from how: sections of text, tables, pictures and findings.

Texts are plain: whoever writes HTML or Markdown escapes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Finding:
    """A sentence computed from the data.

    Attributes:
        text: the sentence. warning: it tells of something bad. key: it belongs on top of the page.
    """

    text: str
    warning: bool = False
    key: bool = False


@dataclass(frozen=True)
class Table:
    """Columns with units in their headings; the first ``text`` are words, the others numbers.

    Attributes:
        folded: long, so that the page shows its caption first.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its file, unique. title: above it. caption: below it. alt: what is in it, for those
            who do not see it. svg: the drawing. findings: what it shows.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    findings: tuple[Finding, ...] = ()


Part = Text | Finding | Table | Picture


@dataclass
class Section:
    """A heading with parts, and sections a level below.

    Attributes:
        folded: the page shows its heading first; True or False, None never folds.
    """

    title: str
    parts: list[Part] = field(default_factory=list)
    below: list[Section] = field(default_factory=list)
    folded: bool | None = None

    def walk(self) -> list[Section]:
        """This section and all below."""
        return [self, *(one for section in self.below for one in section.walk())]

    @property
    def findings(self) -> list[Finding]:
        """All findings in it, in order."""
        found: list[Finding] = []
        for section in self.walk():
            for part in section.parts:
                if isinstance(part, Finding):
                    found.append(part)
                elif isinstance(part, Picture):
                    found += part.findings
        return found


@dataclass
class Page:
    """The report: title, first paragraphs, sections."""

    title: str
    lead: list[str]
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [
            part
            for section in self.sections
            for one in section.walk()
            for part in one.parts
            if isinstance(part, Picture)
        ]

    @property
    def glance(self) -> list[tuple[Section, Finding]]:
        """Warnings, then key findings, each with its section."""
        told = [(section, one) for section in self.sections for one in section.findings]
        return [pair for pair in told if pair[1].warning] + [
            pair for pair in told if pair[1].key and not pair[1].warning
        ]


def slug(text: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "part"
