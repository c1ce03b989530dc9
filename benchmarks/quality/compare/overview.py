"""The README's figure and the table of docs/results.md, from the committed results.

``python -m benchmarks.quality.compare.overview`` draws what every method reaches, against the bytes
that it sends, on light and on dark ground: docs/overview-light.svg and docs/overview-dark.svg. What
is drawn stands in their ``<desc>`` as text, for those who do not see it. It writes the table of
docs/results.md anew, between the comments that name it. Tests compare all of it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import figures, tables
from benchmarks.harness.drawing import INK, LINE, handle, style
from benchmarks.harness.jobs import RESULTS, ROOT
from benchmarks.harness.names import shown
from benchmarks.harness.results import Results
from benchmarks.quality.compare.entries import Entry, planned
from benchmarks.quality.compare.plan import Get, read_plan

DOCS = ROOT / "docs"
RANKS = 8
PLANS = ("compare", "beyond")
SETS = {  # plan and set, and its title
    ("beyond", "transformer"): "tinyshakespeare, Transformer",
    ("beyond", "resnet"): "CIFAR-10, ResNet-8, two epochs",
    ("compare", "mnist"): "MNIST, 784-128-128-10",
}
METHODS = (  # in this order
    *("apts", "muon", "adamw", "schedule-free", "prodigy", "adam", "sgd", "sgd-cosine"),
    *("local-sgd", "diloco", "diloco-cosine", "muloco"),
)
DARK = {INK: "#e6edf3", LINE: "#3d444d", "#000000": "#e6edf3"}


def runs(plan: str) -> Get:
    """Looks up runs of a plan: of real ranks, or of their subdomains on one, which are the same."""
    get = Results(RESULTS / f"{plan}.jsonl").get
    return lambda settings: get(settings) or get({**settings, "simulated": True})


def entries(plan: str, name: str, ranks: int = RANKS) -> dict[str, Entry]:
    """What each method reaches on a set with so many ranks, at the best of its settings."""
    (data,) = (one for one in read_plan(ROOT / "benchmarks" / f"{plan}.toml") if one.name == name)
    found: dict[str, Entry] = {}
    for entry in planned(data, runs(plan)):
        # Gradients averaged by one rank are those of any number, unless these were measured too.
        if entry.figures and (entry.ranks == ranks or (entry.averaging and entry.ranks == 1)):
            found[entry.method] = entry
    return found


def megabytes(entry: Entry) -> float:
    """Handed over per rank in a run."""
    return entry.average("bytes_allreduced") / 1e6


def described() -> Iterator[str]:
    """A line for every point."""
    for (plan, name), title in SETS.items():
        for _, entry in sorted(entries(plan, name).items()):
            yield (
                f"{title}: {shown(entry.method)}: {entry.mean:.3f} {entry.measure.unit}, "
                f"{megabytes(entry):.1f} MB, {len(entry.rows)} seeds"
            )


def accuracy() -> str:
    """A table of what all methods reach on the sets where apts has been measured."""
    body = []
    for plan in PLANS:
        for data in read_plan(ROOT / "benchmarks" / f"{plan}.toml"):
            found = [entry for entry in planned(data, runs(plan)) if entry.figures]
            if not any(entry.method == "apts" for entry in found):
                continue
            for entry in found:
                form, figures = entry.measure.form, entry.figures
                alone = entry.averaging and entry.ranks == 1
                body.append(
                    (
                        *(data.name, shown(entry.method), "any" if alone else entry.ranks),
                        f"{entry.mean:{form}} {entry.measure.unit}",
                        f"{min(figures):{form}} to {max(figures):{form}}",
                        *(len(figures), f"{entry.average('vector_allreduces'):.0f}"),
                        f"{megabytes(entry):.1f}",
                        entry.rate + f" (best of {entry.tried})" * (entry.rate != "-"),
                    )
                )
    heads = ["set", "method", "N", "mean", "least to most", "seeds", "messages", "MB per rank"]
    return tables.markdown([*heads, "learning rate"], body, text=2)


def filled(text: str) -> str:
    """A page with its table as it is now."""
    before, rest = text.split("<!-- accuracy -->\n")
    return f"{before}<!-- accuracy -->\n{accuracy()}\n{rest[rest.index('<!-- end -->') :]}"


def draw() -> str:
    """The figure on light ground, as SVG."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    plt, drawn = figures.pyplot(), io.StringIO()
    look = {"axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK, "grid.color": LINE}
    look |= {"xtick.color": INK, "ytick.color": INK, "svg.fonttype": "none", "svg.hashsalt": "o"}
    with plt.rc_context({**look, "grid.alpha": 1.0, "font.sans-serif": ["DejaVu Sans"]}):
        figure, axes = figures.panels(1, len(SETS), (9.4, 3.6))
        used = set[str]()
        for ax, ((plan, name), title) in zip(axes[0], SETS.items(), strict=True):
            found = entries(plan, name)
            used |= set(found)
            for method, entry in found.items():
                mark, own = style(method), method == "apts"
                ax.plot(
                    *([megabytes(entry)], [entry.mean], mark.marker),
                    **{"ms": 11 if own else 7, "mfc": mark.colour, "mec": INK, "mew": 0.5},
                    zorder=3 if own else 2,
                )
            measure = next(iter(found.values())).measure
            ax.set(title=title, xscale="log", xlabel="MB per rank in a run")
            ax.set_ylabel(f"{measure.name}, {measure.unit}")
            if measure.sign < 0:
                ax.invert_yaxis()
            low, high = min(map(megabytes, found.values())), max(map(megabytes, found.values()))
            ax.set_xlim(low / 2, high * 2)
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.yaxis.set_major_locator(MaxNLocator(5))
        handles = [handle(style(method), shown(method)) for method in METHODS if method in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"(?<=\d\.\d\d)\d+", "", text)
    opening, rest = text.split(">", 1)
    return f"{opening}>\n<desc>\n{chr(10).join(described())}\n</desc>{rest}"


def main() -> None:
    """Write all of it."""
    light = draw()
    dark = light
    for colour, other in DARK.items():
        dark = dark.replace(colour, other)
    for name, text in (("light", light), ("dark", dark)):
        path = Path(DOCS / f"overview-{name}.svg")
        path.write_text(text, encoding="utf-8")
        print(f"written: {path}")
    page = DOCS / "results.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {page}")


if __name__ == "__main__":
    main()
