"""How a picture looks, by day and by night.

The colours (the standard pool, the recipes around it, ours) are of Okabe and Ito's palette, which
colour-blind people can tell apart, lighter on dark. A picture brings its own background, since a
page's theme need not be the system's. No CSS variables: not everything that draws SVG knows them.
"""

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2328",
    "faint": "#59636e",
    "rule": "#d1d9e0",
    "standard": "#c75400",
    "recipe": "#9a4d86",
    "ours": "#0072b2",
}
DARK = {
    "paper": "#0d1117",
    "ink": "#f0f6fc",
    "faint": "#9198a1",
    "rule": "#3d444d",
    "standard": "#f0883e",
    "recipe": "#d58fc2",
    "ours": "#56b4e9",
}

SHAPES = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
text.title { font-size: 18px; font-weight: 600 }
text.way { font-size: 14px; font-weight: 600 }
text.head { font-weight: 600 }
text.words, text.faint { font-size: 12px }
text.small { font-size: 11px }
.limit { stroke-dasharray: 5 4 }
.line { stroke-width: 1.6; stroke-linejoin: round }
.area { fill-opacity: .18 }
"""

COLOURS = """
text {{ fill: {ink} }}
text.faint, text.small {{ fill: {faint} }}
.paper {{ fill: {paper}; stroke: {rule} }}
.rule {{ stroke: {rule} }}
.limit {{ stroke: {faint} }}
.standard {{ fill: {standard}; stroke: {standard} }}
.recipe {{ fill: {recipe}; stroke: {recipe} }}
.ours {{ fill: {ours}; stroke: {ours} }}
text.way, .area {{ stroke: none }}
.line {{ fill: none }}
"""


def style() -> str:
    light, dark = (COLOURS.format_map(colours).strip() for colours in (LIGHT, DARK))
    return f"{SHAPES}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
