"""Horizontal bars as SVG, drawn by hand: a line a bar is all there is to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .figures import Spread

__all__ = ["Bar", "bars", "number"]

_ROW, _TOP, _LABELS, _BARS, _VALUES = 24, 44, 240, 380, 130  # pixels
_OURS, _OTHERS, _LINE = "#2f6fb5", "#a9b4c0", "#333"
_STYLE = 'font-family="system-ui, sans-serif" font-size="13"'


@dataclass(frozen=True)
class Bar:
    """A bar: its length is the median; a thin line shows the spread."""

    label: str
    value: Spread
    ours: bool = False


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """The whole picture."""
    width, height = _LABELS + _BARS + _VALUES, _TOP + _ROW * len(rows) + 10
    longest = max((row.value.most for row in rows), default=0) or 1.0
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" {_STYLE}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="24" font-weight="600" fill="{_LINE}">{escape(title)}</text>',
    ]
    for index, row in enumerate(rows):
        lines += _row(row, _TOP + _ROW * index, _BARS / longest, unit)
    return "\n".join([*lines, "</svg>", ""])


def _row(row: Bar, top: int, scale: float, unit: str) -> list[str]:
    length, least, most = (part * scale for part in (row.value.median, row.value.least, row.value.most))
    middle, base = top + _ROW / 2, top + _ROW / 2 + 4.5
    text = f"{number(row.value.median)} {unit}".rstrip()
    weight = ' font-weight="600"' if row.ours else ""
    return [
        f'<text x="{_LABELS - 8}" y="{base:g}" text-anchor="end" fill="{_LINE}"{weight}>{escape(row.label)}</text>',
        f'<rect x="{_LABELS}" y="{top + 4}" width="{length:.1f}" height="{_ROW - 8}" '
        f'fill="{_OURS if row.ours else _OTHERS}"/>',
        f'<line x1="{_LABELS + least:.1f}" x2="{_LABELS + most:.1f}" y1="{middle:g}" y2="{middle:g}" '
        f'stroke="{_LINE}"/>',
        f'<text x="{_LABELS + max(length, most) + 8:.1f}" y="{base:g}" fill="{_LINE}"{weight}>{escape(text)}</text>',
    ]


def number(value: float) -> str:
    """Three digits or more: 1,234,567  123  12.3  1.23."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
