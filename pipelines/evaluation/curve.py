"""Accuracy against cost, as a figure: what an evaluation at several speeds found."""

from __future__ import annotations

from collections.abc import Mapping

WIDTH, HEIGHT, LEFT, TOP, GAP = 340, 260, 60, 30, 90


def speed_curve(metrics: Mapping[str, float]) -> str:
    """An SVG with two panels: accuracy over the share of operations, and over the milliseconds of a text.

    Args:
        metrics: `accuracy`, `operations_share` and `seconds_per_text`, alone and behind `speed-S/`.
    """
    names = [name.removesuffix("accuracy") for name in metrics if name == "accuracy" or name.endswith("/accuracy")]
    labels = [name.strip("/").removeprefix("speed-") or "all layers" for name in names]
    accuracy = [100 * metrics[f"{name}accuracy"] for name in names]
    shares = [100 * metrics[f"{name}operations_share"] for name in names]
    times = [1000 * metrics[f"{name}seconds_per_text"] for name in names]
    total = 2 * (LEFT + WIDTH) + GAP
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + TOP + 60}" font-family="sans-serif" font-size="12">',
             f'<rect width="{total}" height="{HEIGHT + TOP + 60}" fill="white"/>']
    for number, (title, xs) in enumerate((("operations, % of all layers", shares), ("time of a text, ms", times))):
        parts += _panel(LEFT + number * (LEFT + WIDTH + GAP // 2), title, xs, accuracy, labels)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, title: str, xs: list[float], ys: list[float], labels: list[str]) -> list[str]:
    highest, low, high = max(xs) * 1.1, min(ys), max(ys)
    margin = max(1.0, 0.15 * (high - low))
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / highest * WIDTH, TOP + (high - y) / (high - low) * HEIGHT

    parts = [f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
             f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle">{title}</text>',
             f'<text x="{left}" y="{TOP - 10}">accuracy, %</text>']
    for tick in range(5):
        x, y = highest * tick / 4, low + (high - low) * tick / 4
        parts += [f'<text x="{place(x, low)[0]:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" fill="#555">{x:.3g}</text>',
                  f'<text x="{left - 8}" y="{place(0, y)[1] + 4:.1f}" text-anchor="end" fill="#555">{y:.1f}</text>']
    points = sorted(zip(xs, ys, labels, strict=True))
    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y, _ in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#00796b" stroke-width="1.5"/>')
    for x, y, label in points:
        cx, cy = place(x, y)
        parts += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="#00796b"/>',
                  f'<text x="{cx + 6:.1f}" y="{cy - 8:.1f}">{label}</text>']
    return parts
