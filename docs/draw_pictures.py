"""Draws the pictures of the concepts' pages: ``python docs/draw_pictures.py`` writes ``docs/pictures/*.svg``.

Plain SVG without scripts or fonts to load, on a light card, so that it reads on light and dark pages alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from drawing import BLUE, GREEN, INK, LINE, ORANGE, SOFT, Drawing

from distiller_ng import PolicyWindow
from distiller_ng.pruning.sparsity_schedules import as_schedule

__all__ = ["PICTURES", "main"]

FOLDER = Path(__file__).resolve().parent / "pictures"


def schedule_flow() -> Drawing:
    """From the file to the hooks of the training loop."""
    d = Drawing(760, 400, "A schedule file becomes policies; the scheduler calls them from hooks of the training loop")
    d.box(
        20,
        40,
        200,
        130,
        [
            "schedule.yaml",
            "what: pruners, quantizers,",
            "distillers, learning rates, ...",
            "when: policies with windows",
        ],
        fill="#eef2ff",
        stroke=BLUE,
        size=12,
    )
    d.line([(220, 105), (278, 105)], arrow=True)
    d.text(249, 96, "checked", size=12, color=SOFT)
    d.box(
        280,
        40,
        190,
        130,
        ["CompressionScheduler", "policies, masks,", "progress of the run"],
        fill="#fff4e6",
        stroke=ORANGE,
        size=12,
    )
    d.box(20, 240, 200, 120, ["your model", "plain PyTorch: same", "modules, same names"])
    d.line([(375, 170), (375, 298), (222, 298)], arrow=True)
    d.text(300, 288, "masks after each step", size=12, color=SOFT)
    hooks = [
        "on_epoch_begin",
        "  on_minibatch_begin",
        "  forward, loss",
        "  before_backward_pass",
        "  backward",
        "  before_parameter_optimization",
        "  optimizer.step()",
        "  on_minibatch_end",
        "on_epoch_end",
    ]
    d.box(530, 40, 210, 320, fill="#f3faf5", stroke=GREEN)
    d.text(635, 66, "your training loop", bold=True)
    for number, hook in enumerate(hooks):
        own = "on_" in hook or "before_" in hook
        d.text(
            542 + (14 if hook.startswith(" ") else 0),
            102 + number * 29,
            hook.strip(),
            size=10 if "parameter_opt" in hook else 12,
            anchor="start",
            color=BLUE if own else SOFT,
            mono=True,
        )
    d.line([(528, 105), (472, 105)], arrow=True)
    d.text(500, 96, "hooks", size=12, color=SOFT)
    return d


def windows() -> Drawing:
    """When windows act; the dots are the library's own."""
    d = Drawing(760, 250, "Active epochs of three windows on a line of ten epochs")
    left, unit = 270, 46
    for epoch in range(11):
        x = left + epoch * unit
        d.line([(x, 44), (x, 220)], color="#e4e7eb", width=1)
        d.text(x, 34, str(epoch), size=12, color=SOFT)
    d.text(left - 20, 34, "epoch", size=12, color=SOFT, anchor="end")
    rows: list[tuple[str, str, Sequence[float], tuple[float, float]]] = [
        ("epochs: [0, 5, 9]", BLUE, PolicyWindow.from_epochs([0, 5, 9]).active_epochs(), (0, 10)),
        ("0 to 10, frequency 3", ORANGE, PolicyWindow.from_range(0, 10, 3).active_epochs(), (0, 10)),
        ("0.5 to 2, frequency 0.25", GREEN, [0.5 + 0.25 * n for n in range(7)], (0.5, 2)),
    ]
    for number, (label, color, active, (start, end)) in enumerate(rows):
        y = 78 + number * 60
        d.text(left - 20, y + 5, label, anchor="end", mono=True, size=13)
        d.line([(left + start * unit, y), (left + end * unit, y)], color=color, width=6 if number == 2 else 2)
        for at in active:
            if number == 2:
                d.dot(left + at * unit, y, 4.5, color)
            else:
                d.parts.append(
                    f'<rect x="{left + at * unit + 2:g}" y="{y - 10}" width="{unit - 4}" '
                    f'height="20" rx="4" fill="{color}"/>'
                )
    d.text(
        left + 2 * unit + 14, 203, "acts at optimizer steps, and once at the end", size=12, color=SOFT, anchor="start"
    )
    return d


def agp_curve() -> Drawing:
    """Sparsity over a window's progress, from the library's curves."""
    d = Drawing(760, 300, "Target sparsity against progress: AGP rises fast and then slowly, linear evenly")
    x0, y0, w, h = 90, 250, 420, 210
    d.line([(x0, y0 - h), (x0, y0), (x0 + w, y0)], color=LINE)
    for value in (0.0, 0.5, 0.9):
        y = y0 - h * value
        d.line([(x0, y), (x0 + w, y)], color="#e4e7eb", width=1)
        d.text(x0 - 10, y + 5, f"{value:g}", size=12, color=SOFT, anchor="end")
    d.text(x0 + w / 2, y0 + 34, "progress of the window: 0 at its first action, 1 at its last", size=13, color=SOFT)
    d.text(x0 - 10, y0 - h - 10, "sparsity", size=12, color=SOFT)
    for name, color, at in (("AGP", BLUE, 70), ("Linear", ORANGE, 100)):
        curve = as_schedule({"class": name, "initial_sparsity": 0.05, "final_sparsity": 0.9})
        d.line([(x0 + w * p / 50, y0 - h * curve.target(p / 50)) for p in range(51)], color=color, width=2.5)
        d.line([(540, at), (570, at)], color=color, width=3)
        d.text(580, at + 5, name, anchor="start", size=13)
    for number in range(5):
        progress = number / 4
        curve = as_schedule({"class": "AGP", "initial_sparsity": 0.05, "final_sparsity": 0.9})
        d.dot(x0 + w * progress, y0 - h * curve.target(progress), 5, BLUE)
    d.dot(555, 130, 5, BLUE)
    d.text(580, 135, "five actions", anchor="start", size=13)
    return d


def masks() -> Drawing:
    """Two owners' masks multiply, and the weight is multiplied by the product."""
    d = Drawing(760, 220, "A weight times the product of two pruners' masks")
    first, second = ("1011", "0111", "1101", "1110"), ("1111", "1111", "0101", "0101")
    strength = (0.9, 0.35, 0.6, 0.2, 0.15, 0.8, 0.5, 0.95, 0.7, 0.45, 0.1, 0.65, 0.3, 0.85, 0.55, 0.25)
    both = [a == "1" and b == "1" for row in range(4) for a, b in zip(first[row], second[row])]
    grids: list[tuple[float, str, Callable[[int], str]]] = [
        (40, "weight", lambda n: _blue(strength[n])),
        (230, "mask of pruner A", lambda n: INK if first[n // 4][n % 4] == "1" else "#e4e7eb"),
        (420, "mask of pruner B", lambda n: INK if second[n // 4][n % 4] == "1" else "#e4e7eb"),
        (610, "what the model uses", lambda n: _blue(strength[n]) if both[n] else "#ffffff"),
    ]
    for x, label, fill in grids:
        for n in range(16):
            d.square(x + n % 4 * 28, 50 + n // 4 * 28, 28, fill(n), stroke=LINE)
        d.text(x + 56, 190, label, size=13)
    for x, sign in ((191, "×"), (381, "×"), (571, "=")):
        d.text(x, 116, sign, size=26, color=SOFT)
    d.text(380, 30, "1 keeps, 0 prunes; each mask belongs to the pruner that made it", size=13, color=SOFT)
    return d


def _blue(strength: float) -> str:
    """White to indigo."""
    parts = (round(255 - strength * (255 - value)) for value in (63, 81, 181))
    return "#" + "".join(f"{part:02x}" for part in parts)


def dependency_group() -> Drawing:
    """One channel through everything it belongs to."""
    d = Drawing(
        760,
        300,
        "What goes with a filter: its norm, the same channel of the shortcut, the next layer's inputs",
    )
    names = [("conv1", 40), ("bn1", 205), ("add", 370), ("conv3", 535)]
    for name, x in names:
        d.text(x + 60, 40, name, bold=True)
    for x, rows, columns, vertical in ((40, 5, 6, False), (205, 5, 2, False), (535, 6, 5, True)):
        for row in range(rows):
            for column in range(columns):
                hit = column == 2 if vertical else row == 2
                d.square(x + column * 22, 60 + row * 22, 22, ORANGE if hit else "#dbe4ff", stroke="#ffffff")
    d.box(380, 92, 100, 46, ["+"], size=22)
    for a, b in ((178, 200), (255, 375), (482, 530)):
        d.line([(a, 115), (b, 115)], arrow=True)
    d.text(60 + 46, 200, "a filter: one row", size=12, color=SOFT)
    d.text(238, 200, "scale and shift", size=12, color=SOFT)
    d.text(600, 212, "its inputs: one column", size=12, color=SOFT)
    d.text(106, 246, "conv2 on the shortcut", bold=True, size=13)
    for row in range(2):
        for column in range(6):
            d.square(200 + column * 22, 228 + row * 22, 22, ORANGE if row == 1 else "#dbe4ff", stroke="#ffffff")
    d.line([(336, 250), (430, 250), (430, 140)], arrow=True)
    d.text(575, 256, "what is added must lose the same channel", size=12, color=SOFT)
    d.text(380, 288, "orange: one dependency group, pruned and removed together", size=13)
    return d


def fake_quantization() -> Drawing:
    """The staircase of rounding, and the same graph with integers."""
    d = Drawing(
        760,
        320,
        "Left: rounding to a grid with clipping; right: fake quantization in training and integers in a runtime",
    )
    x0, y0, s = 160, 160, 24
    d.line([(x0 - 130, y0), (x0 + 130, y0)], color=LINE)
    d.line([(x0, y0 + 120), (x0, y0 - 120)], color=LINE)
    steps = [(-5.2, -3)] + [(k - 0.5, k) for k in range(-2, 4)] + [(5.2, 3)]
    points: list[tuple[float, float]] = [(x0 - 5.2 * s, y0 + 3 * s)]
    for at, level in steps[1:-1]:
        points += [(x0 + at * s, points[-1][1]), (x0 + at * s, y0 - level * s)]
    points.append((x0 + 5.2 * s, y0 - 3 * s))
    d.line([(x0 - 110, y0 + 110), (x0 + 110, y0 - 110)], color=LINE, dashed=True, width=1.5)
    d.line(points, color=BLUE, width=2.5)
    d.text(x0, 24, "what a value becomes (3 bits)", size=13)
    d.text(x0 + 92, y0 - 82, "clipped", size=12, color=SOFT)
    d.text(x0, 306, "dashed: what the gradient sees, within the range", size=12, color=SOFT)
    d.text(545, 24, "in training: everything stays floating point", size=13)
    for number, words in enumerate((["weight"], ["round", "to the grid"], ["conv"], ["round", "the output"])):
        d.box(
            340 + number * 105,
            44,
            88,
            56,
            words,
            size=12,
            fill="#fff4e6" if words[0] == "round" else "#ffffff",
            stroke=ORANGE if words[0] == "round" else LINE,
        )
        if number < 3:
            d.line([(428 + number * 105, 72), (443 + number * 105, 72)], arrow=True)
    d.text(545, 160, "written for a runtime (QDQ): the same numbers, as integers", size=13)
    for number, words in enumerate((["int8 weight", "and scale"], ["Dequantize"], ["conv"], ["Quantize"])):
        d.box(
            340 + number * 105,
            180,
            88,
            56,
            words,
            size=12,
            fill="#f3faf5" if number != 2 else "#ffffff",
            stroke=GREEN if number != 2 else LINE,
        )
        if number < 3:
            d.line([(428 + number * 105, 208), (443 + number * 105, 208)], arrow=True)
    d.text(545, 268, "the runtime fuses the three into one integer kernel", size=12, color=SOFT)
    d.text(545, 290, "convert() runs the file and compares the outputs", size=12, color=SOFT)
    return d


def distillation() -> Drawing:
    """Teacher and student on one batch, and the terms of the loss."""
    d = Drawing(
        760, 290, "Teacher and student see the same batch; the loss adds the distance of their outputs and layers"
    )
    d.box(20, 110, 90, 60, ["batch"])
    d.box(180, 30, 250, 70, ["teacher", "eval mode, no gradients"], fill="#eef2ff", stroke=BLUE)
    d.box(180, 180, 250, 70, ["student", "your model, in your loop"], fill="#f3faf5", stroke=GREEN)
    d.line([(110, 130), (145, 130), (145, 65), (178, 65)], arrow=True)
    d.line([(110, 150), (145, 150), (145, 215), (178, 215)], arrow=True)
    d.line([(305, 100), (305, 178)], color=ORANGE, dashed=True)
    d.text(315, 145, "layers: MSE, attention, ...", size=12, color=ORANGE, anchor="start")
    d.line([(430, 65), (540, 65), (540, 118)], arrow=True)
    d.line([(430, 215), (540, 215), (540, 164)], arrow=True)
    d.text(486, 55, "logits / T", size=12, color=SOFT)
    d.text(486, 232, "logits / T", size=12, color=SOFT)
    d.box(480, 120, 120, 42, ["T² · KL"], fill="#fff4e6", stroke=ORANGE)
    d.line([(600, 141), (648, 141)], arrow=True)
    d.box(650, 110, 90, 62, ["loss", "to backward"], size=12)
    d.line([(430, 240), (695, 240), (695, 174)], arrow=True)
    d.text(600, 260, "the loss against the labels", size=12, color=SOFT)
    return d


#: Pictures by file name.
PICTURES: Mapping[str, Callable[[], Drawing]] = {
    "schedule-flow.svg": schedule_flow,
    "windows.svg": windows,
    "sparsity-curves.svg": agp_curve,
    "masks.svg": masks,
    "dependency-group.svg": dependency_group,
    "fake-quantization.svg": fake_quantization,
    "distillation.svg": distillation,
}


def main() -> int:
    """Write every picture."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().svg(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
