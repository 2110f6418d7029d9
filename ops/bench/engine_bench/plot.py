"""The plot: tokens/s of every contender, a panel for each workload (rows) and model (columns)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench_errors import BenchError

from engine_bench.contenders import OURS
from engine_bench.report import Comparison
from engine_bench.workloads import TITLES

#: By family, from the palette of Okabe and Ito, which colour-blind people can tell apart; names stand beside the bars.
_TRANSFORMERS, _CONTINUOUS, _CTRANSLATE2, _OURS, _INFLIGHT = "#999999", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2"
_COLOURS = {
    "generate-batch": _CONTINUOUS,
    "ctranslate2": _CTRANSLATE2,
    "ctranslate2-static-prompt": _CTRANSLATE2,
    "ours-padded": _OURS,
    OURS: _INFLIGHT,
}

#: Inches.
_WIDTH, _BAR, _TITLE = 6.5, 0.26, 0.75


def require_matplotlib() -> None:
    """Raises BenchError if it is not installed."""
    if find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib, which is in the extra `bench`: pip install 'promptmill[bench]'")


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write an SVG; the same comparisons give the same bytes."""
    require_matplotlib()
    matplotlib = import_module("matplotlib")
    # Without a salt the ids in the file would be random.
    settings = {"svg.hashsalt": "promptmill", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = _figure(comparisons)
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")


def _figure(comparisons: Sequence[Comparison]) -> Any:
    models = [*dict.fromkeys(one.work.model for one in comparisons)]
    workloads = [*dict.fromkeys(one.work.workload for one in comparisons)]
    bars = {name: max(len(one.results) for one in comparisons if one.work.workload == name) for name in workloads}
    heights = [_BAR * bars[name] + _TITLE for name in workloads]
    # Not through pyplot, which keeps figures and chooses a window system.
    figure = import_module("matplotlib.figure").Figure(
        figsize=(_WIDTH * len(models), sum(heights)), layout="constrained"
    )
    panels = figure.subplots(len(workloads), len(models), squeeze=False, gridspec_kw={"height_ratios": heights})
    for panel in panels.flat:
        panel.set_visible(False)
    for one in comparisons:
        panel = panels[workloads.index(one.work.workload)][models.index(one.work.model)]
        panel.set_visible(True)
        _draw_panel(panel, one)
    return figure


def _draw_panel(panel: Any, one: Comparison) -> None:
    names = [*one.results]
    speeds = [result.tokens_per_s for result in one.results.values()]
    panel.barh(names, speeds, color=[_COLOURS.get(name, _TRANSFORMERS) for name in names], height=0.75)
    for place, (name, speed) in enumerate(zip(names, speeds, strict=True)):
        panel.annotate(_label(one, name, speed), (speed, place), (4, 0), textcoords="offset points", va="center")
    if one.floor is not None:
        bound = one.work.again().output_tokens / one.floor.in_phases
        panel.axvline(bound, color="black", linestyle="--", linewidth=1)
        panel.annotate("floor", (bound, 0), (3, 0), textcoords="offset points", va="center", fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.22)
    panel.set_xlim(left=0)
    panel.set_xlabel("tokens/s")
    panel.set_title(f"{one.work.model}, {TITLES.get(one.work.workload, one.work.workload)}", loc="left", fontsize=10)


def _label(one: Comparison, name: str, speed: float) -> str:
    ratio = one.to_inflight(name)
    if ratio is None or name == OURS:
        return f"{speed:.0f}"
    return f"{speed:.0f}  ({1 / ratio:.1f}x slower)" if ratio < 1 else f"{speed:.0f}  ({ratio:.1f}x faster)"
