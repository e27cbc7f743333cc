"""Accuracy against cost, as a figure: what an evaluation at several speeds found."""

from __future__ import annotations

import io
from collections.abc import Mapping

SPAN = 4.0
"""Points of accuracy that are shown at least: less than that is mostly the texts' chance."""

WHOLE = "all layers"


def speed_curve(metrics: Mapping[str, float]) -> str:
    """An SVG with two panels: accuracy over the share of operations, and over the milliseconds of a text.

    Args:
        metrics: `accuracy`, `operations_share` and `seconds_per_text`, alone and behind `speed-S/`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = [name.removesuffix("accuracy") for name in metrics if name == "accuracy" or name.endswith("/accuracy")]
    labels = [name.strip("/").replace("-", " ") or WHOLE for name in names]
    with mpl.rc_context({"svg.hashsalt": "polymodal", "svg.fonttype": "none"}):  # the same numbers make the same bytes
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        for axes, key, scale, title in zip(figure.subplots(1, 2, sharey=True), ("operations_share", "seconds_per_text"), (100, 1000),
                                           ("operations, % of all layers", "time of a text, ms"), strict=True):
            points = sorted((scale * metrics[name + key], 100 * metrics[f"{name}accuracy"], label)
                            for name, label in zip(names, labels, strict=True))
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o")
            for x, y, label in points:
                whole = label == WHOLE
                axes.annotate(label, (x, y), xytext=(0, -6 if whole else 6), textcoords="offset points", rotation=-60 if whole else 60,
                              va="top" if whole else "bottom")
            axes.set(xlabel=title, ylabel="accuracy, %" if key == "operations_share" else "")
            axes.set_xlim(0, 1.15 * points[-1][0])
            heights = [y for _, y, _ in points]
            middle, reach = (max(heights) + min(heights)) / 2, max(SPAN, max(heights) - min(heights))
            axes.set_ylim(middle - reach, middle + reach)  # room for the labels
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
