"""The pens that the scripts beside this file share: colours, boxes, text, and the sheet that they are drawn on."""

from __future__ import annotations

from html import escape

WIDTH = 560
LIT, DIM, PALE = ("#1d4ed8", "#ffffff"), ("#eef2f7", "#1e293b"), ("#bfdbfe", "#1e293b")  # (fill, text)
LINE, INK, QUIET = "#64748b", "#1e293b", "#475569"
BOX = 30


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


def drawing(height: float, label: str, shapes: list[str]) -> str:
    """Return the whole SVG; it brings its own light background, so it reads in dark mode too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(label)}">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
