"""The page of the report: title, first paragraphs, sections, and what of them stands at the top."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.sections import Finding, Picture, Section, slug


@dataclass
class Page:
    """The report: title, first paragraphs, sections."""

    title: str
    lead: list[str]
    sections: list[Section]

    @property
    def every(self) -> list[Section]:
        """The sections of all levels, in order."""
        return [one for section in self.sections for one in section.walk()]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [part for one in self.every for part in one.parts if isinstance(part, Picture)]

    @property
    def glance(self) -> list[tuple[Section, Finding]]:
        """Warnings, then key findings, each with its section."""
        found = [(section, one) for section in self.sections for one in section.findings]
        return [pair for pair in found if pair[1].warning] + [
            pair for pair in found if pair[1].key and not pair[1].warning
        ]

    def anchors(self) -> dict[int, str]:
        """A name of its own for every section, by its id()."""
        named: dict[int, str] = {}
        for one in self.every:
            name, number = slug(one.title), 2
            while name in named.values():
                name, number = f"{slug(one.title)}-{number}", number + 1
            named[id(one)] = name
        return named
