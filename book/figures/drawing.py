"""The pens that the scripts beside this file share: colours, boxes, text, and the sheet that they are drawn on."""

from __future__ import annotations

from html import escape

WIDTH = 560
LIT, DIM, PALE = ("#1d4ed8", "#ffffff"), ("#eef2f7", "#1e293b"), ("#bfdbfe", "#1e293b")  # (fill, text)
GREEN, YELLOW, RED = ("#bbf7d0", "#1e293b"), ("#fde68a", "#1e293b"), ("#fecaca", "#1e293b")
LINE, INK, QUIET = "#64748b", "#1e293b", "#475569"
BOX = 30
MONO_TO_SANS = ("ui-monospace, monospace", "system-ui, sans-serif")


def text_at(x: float, y: float, text: str, anchor: str = "middle", fill: str = INK, size: int = 14) -> str:
    """Return one line of text; `y` is its baseline."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}">{escape(text)}</text>'
    )


def box(x: float, y: float, width: float, label: str, colours: tuple[str, str] = DIM) -> str:
    """Return a box with a label in its middle; a space is drawn as an open box."""
    fill, ink = colours
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX}" rx="5" fill="{fill}" stroke="{LINE}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + 20:.1f}" text-anchor="middle" fill="{ink}" font-size="15" '
        f'font-family="ui-monospace, monospace">{escape(label.replace(" ", "␣"))}</text>'
    )


def named_box(x: float, y: float, width: float, label: str, colours: tuple[str, str] = DIM, size: int = 14) -> str:
    """Return a box that holds words."""
    text = box(x, y, width, label, colours).replace(*MONO_TO_SANS).replace("␣", " ")
    return text.replace('font-size="15"', f'font-size="{size}"')


def frame(x: float, y: float, width: float, height: float, fill: str = "none") -> str:
    """Return a dashed frame around things that belong together."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8" fill="{fill}" '
        f'stroke="{LINE}" stroke-dasharray="5 4"/>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return an arrow; its head is drawn, so that no marker definition is needed."""
    if x1 == x2:
        head = f"M{x2 - 4:.1f} {y2 - 7:.1f} L{x2:.1f} {y2:.1f} L{x2 + 4:.1f} {y2 - 7:.1f}"
    else:
        back = x2 - 7 if x1 < x2 else x2 + 7
        head = f"M{back:.1f} {y2 - 4:.1f} L{x2:.1f} {y2:.1f} L{back:.1f} {y2 + 4:.1f}"
    return f'<path d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f} {head}" fill="none" stroke="{LINE}" stroke-width="1.5"/>'


def matrix(
    x: float, y: float, width: float, height: float, label: str, colours: tuple[str, str], size: int = 14
) -> str:
    """Return a rectangle with a label in its middle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colours[0]}" '
        f'stroke="{LINE}"/>' + text_at(x + width / 2, y + height / 2 + 5, label, "middle", colours[1], size)
    )


def timeline(y: float, name: str, bars: list[tuple[float, float, str, tuple[str, str]]]) -> list[str]:
    """Return one line of a timeline: its name, and bars with start, length and label."""
    shapes = [text_at(112, y + 19, name, "end", QUIET, 13)]
    for start, length, label, colours in bars:
        shapes.append(matrix(124 + start, y, length, 28, label, colours, 12))
    return shapes


def drawing(height: float, label: str, shapes: list[str]) -> str:
    """Return the whole SVG; it brings its own light background, so it reads in dark mode too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(label)}">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
