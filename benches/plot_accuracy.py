#!/usr/bin/env python3
"""Draws test accuracy against seconds of training: benches/plot_accuracy.py OUT.svg TITLE RUN [RUN …]

Each RUN is a directory that `esync-train` wrote; its name in the picture is its mode. The time axis is logarithmic.
"""

import json
import math
import pathlib
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 64, 96, 44, 48
COLOURS = ["#c0392b", "#1f6fb2", "#2e8b57", "#8e6bbf"]


def curve(run):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [(line["train_seconds"], line["accuracy"]) for line in lines if line["kind"] == "evaluate"]


def main():
    out, title, *runs = sys.argv[1:]
    runs = [pathlib.Path(run) for run in runs]
    curves = {json.loads((run / "summary.json").read_text())["mode"]: curve(run) for run in runs}
    times = [t for points in curves.values() for t, _ in points]
    low, high = math.log10(min(times)) - 0.05, math.log10(max(times)) + 0.05
    x = lambda t: LEFT + (math.log10(t) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    y = lambda a: HEIGHT - BOTTOM - a * (HEIGHT - TOP - BOTTOM)
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="24" font-size="15" fill="#222">{title}</text>']
    for share in [0, 0.25, 0.5, 0.75, 0.95]:
        dash = ' stroke-dasharray="5 4"' if share == 0.95 else ""
        svg.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ccc"{dash}/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end" fill="#555">{share:.0%}</text>')
    for t in [s * 10.0 ** e for e in range(-3, 5) for s in (1, 2, 5)]:
        if low <= math.log10(t) <= high:
            svg.append(f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" stroke="#555"/>')
            svg.append(f'<text x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#555">{t:g}</text>')
    svg.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">'
               'seconds of training (evaluation not counted), logarithmic</text>')
    for (mode, points), colour in zip(curves.items(), COLOURS):
        path = " ".join(f"{x(t):.1f},{y(a):.1f}" for t, a in points)
        svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        t, a = points[-1]
        svg.append(f'<circle cx="{x(t):.1f}" cy="{y(a):.1f}" r="4" fill="{colour}"/>')
        svg.append(f'<text x="{x(t) + 9:.1f}" y="{y(a) + 4:.1f}" fill="{colour}">{mode} {t:.1f} s</text>')
    svg.append("</svg>")
    pathlib.Path(out).write_text("\n".join(svg) + "\n")


if __name__ == "__main__":
    main()
