"""Draw which package imports which, from the imports in the source: `python scripts/import_graph.py`.

Prints the Markdown that the page about the architecture contains. The order of the packages is that of the layers in
`pyproject.toml`, which `lint-imports` checks. Imports no TensorFlow.
"""

import ast
import collections
import statistics
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "efficientnet_tf"
WIDTH, HEIGHT, GAP, ROW = 132, 34, 28, 74  # of a box, between boxes, and from one row to the next


def list_layers() -> list[tuple[str, list[str]]]:
    """Return the title and the modules or packages of each layer, from the top to the bottom."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    names = [[name.strip().removeprefix("efficientnet_tf.") for name in layer.split("|")] for layer in layers]
    return [(each[0] if len(each) == 1 else "commands", each) for each in names]


def count_imports() -> dict[str, collections.Counter[str]]:
    """Return for each layer how many of its modules import from each of the other layers."""
    title_of = {module: title for title, modules in list_layers() for module in modules}
    imports = {title: collections.Counter() for title, _ in list_layers()}
    for path in PACKAGE.rglob("*.py"):
        title = title_of.get(path.relative_to(PACKAGE).with_suffix("").parts[0])
        # A package's own command is an entry point, like the commands at the top.
        if title and not (path.name == "__main__.py" and path.parent != PACKAGE):
            names = {title_of.get(name) for name in _list_imported(ast.parse(path.read_text(encoding="utf-8")))}
            imports[title].update(names - {title, None})
    return imports


def _list_imported(tree: ast.AST) -> set[str]:
    """Return the first part of each name that is imported from this package: {"config"} for `config.load`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("efficientnet_tf.")}


def reduce_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return an acyclic graph without the edges that a longer path replaces."""
    reachable: dict[str, set[str]] = {}

    def reach(node: str) -> set[str]:
        if node not in reachable:
            reachable[node] = set().union(graph[node], *map(reach, graph[node]))
        return reachable[node]

    return {node: below - set().union(*map(reach, below)) for node, below in graph.items()}


def draw_graph(graph: dict[str, set[str]]) -> str:
    """Return an SVG image of an acyclic graph, with each node above the nodes that it leads to."""
    above = {node: [other for other in graph if node in graph[other]] for node in graph}
    levels: dict[str, int] = {}

    def find_level(node: str) -> int:
        if node not in levels:
            levels[node] = 1 + max(map(find_level, above[node]), default=-1)
        return levels[node]

    rows: dict[int, list[str]] = {}
    for node in graph:
        rows.setdefault(find_level(node), []).append(node)
    width = max(map(len, rows.values())) * (WIDTH + GAP)
    height = len(rows) * ROW - (ROW - HEIGHT) + 4
    place: dict[str, tuple[float, float]] = {}
    for level in sorted(rows):
        # Below what leads to it, so that few lines cross.
        centers = {node: statistics.fmean([place[other][0] for other in above[node]] or [0]) for node in rows[level]}
        for i, node in enumerate(sorted(rows[level], key=centers.__getitem__)):
            x = width / 2 + (i - (len(rows[level]) - 1) / 2) * (WIDTH + GAP)
            place[node] = (x, 2 + HEIGHT / 2 + level * ROW)
    shapes = []
    for node, below in graph.items():
        for other in sorted(below):
            (x, y), (x2, y2) = place[node], place[other]
            y, y2 = y + HEIGHT / 2, y2 - HEIGHT / 2
            middle = (y + y2) / 2
            shapes.append(f'<path d="M{x:.0f},{y:.0f} C{x:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"/>')
    for node, (x, y) in place.items():
        box = f'x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6"'
        shapes.append(f'<rect {box}/><text x="{x:.0f}" y="{y + 5:.0f}">{node}</text>')
    label = 'role="img" aria-label="Which package imports which"'
    return f'<svg viewBox="0 0 {width} {height}" {label}>{"".join(shapes)}</svg>'


def describe(title: str) -> str:
    """Return the first sentence of the docstring of a layer's package or module."""
    if title == "commands":
        return "One module for each command: flags in, messages and files out."
    path = PACKAGE / title / "__init__.py"
    path = path if path.exists() else PACKAGE / f"{title}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].split(": `python")[0].rstrip(".") + "."


def format_page() -> str:
    """Return the drawing and the list of all imports, as Markdown."""
    imports = count_imports()
    drawing = draw_graph(reduce_graph({title: set(counts) for title, counts in imports.items()}))
    items = [f'<figure class="drawing">{drawing}</figure>']
    for title, counts in imports.items():
        listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        items.append(f"`{title}`\n:   {describe(title)} {f'Imports from {listed}.' if listed else 'Imports none.'}")
    return "\n\n".join(items)


if __name__ == "__main__":
    print(format_page())
