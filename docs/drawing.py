"""The shapes that ``docs/draw_pictures.py`` needs, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["BLUE", "CARD", "GREEN", "INK", "LINE", "ORANGE", "SOFT", "Drawing"]

INK, SOFT, LINE, BLUE, ORANGE, GREEN, CARD = "#1f2933", "#52606d", "#9aa5b1", "#3f51b5", "#d9480f", "#2b8a3e", "#fbfcfe"


class Drawing:
    """A picture of ``width`` x ``height`` with the few shapes that are needed."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title, self.parts = (width, height), title, []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 14,
        color: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """Words with their base line at ``(x, y)``."""
        family = ' font-family="ui-monospace, Consolas, monospace"' if mono else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}"'
            f"{weight}{family}>{escape(words)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        words: Sequence[str] = (),
        *,
        fill: str = "#ffffff",
        stroke: str = LINE,
        color: str = INK,
        size: int = 14,
        mono: bool = False,
    ) -> None:
        """A rectangle with lines of words in its middle; the first of several is bold."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
        )
        top = y + h / 2 - (len(words) - 1) * size * 0.65 + size * 0.35
        for number, line in enumerate(words):
            self.text(
                x + w / 2,
                top + number * size * 1.3,
                line,
                size=size,
                color=color,
                bold=number == 0 and len(words) > 1,
                mono=mono,
            )

    def square(self, x: float, y: float, side: float, fill: str, *, stroke: str = "#ffffff") -> None:
        """A cell of a tensor."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{fill}" stroke="{stroke}"/>'
        )

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        color: str = SOFT,
        width: float = 1.8,
        arrow: bool = False,
        dashed: bool = False,
    ) -> None:
        """Straight lines through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dash}{end}/>'
        )

    def dot(self, x: float, y: float, radius: float, color: str) -> None:
        """A filled circle."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{color}"/>')

    def svg(self) -> str:
        """The whole picture."""
        width, height = self.size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{SOFT}"/></marker></defs>\n'
            f'<rect width="{width}" height="{height}" rx="10" fill="{CARD}"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )
