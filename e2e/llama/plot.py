"""A bar chart as SVG, without any package."""

from html import escape

ROW, LEFT, WIDTH = 28, 170, 640


def bars(title: str, values: dict[str, float]) -> str:
    """One horizontal bar for each value, its number beside it."""
    most = max(values.values()) or 1.0
    height = ROW * len(values) + 50
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">']
    out.append(f'<rect width="{WIDTH}" height="{height}" fill="white"/>')
    out.append(f'<text x="10" y="24" font-weight="bold">{escape(title)}</text>')
    for row, (name, value) in enumerate(values.items()):
        y = 40 + ROW * row
        length = (WIDTH - LEFT - 80) * value / most
        out.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="20" fill="#4878a8"/>')
        out.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{value:.1f}</text>')
    return "\n".join(out + ["</svg>", ""])
