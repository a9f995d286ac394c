"""List the longest modules and functions of the package: `python scripts/longest.py [FOLDER]`.

Exits with status 1 if a module or a function is over its limit. Modules are measured in lines, without the classes that
define the schema of the configuration. Functions are measured in lines of code, without docstrings, comments and blank
lines.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

from efficientnet_tf.runtime.terminal import make_table, show

PACKAGE = Path(__file__).resolve().parent.parent / "efficientnet_tf"
MODULE_LIMIT = 350  # lines
FUNCTION_LIMIT = 60  # lines of code
SHOWN = 10
SCHEMA_BASES = ("BaseModel", "Section")
IGNORED_TOKENS = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def count_module_lines(source: str) -> int:
    """Return the number of lines of a module, without schema definitions."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and _is_schema(node)]
    return len(source.splitlines()) - sum(len(_span(node)) for node in classes)


def count_function_lines(source: str) -> dict[str, int]:
    """Return the lines of code of every function of a module, by its qualified name."""
    tree = ast.parse(source)
    code = _code_lines(source) - {line for node in ast.walk(tree) if _is_docstring(node) for line in _span(node)}
    counts = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
                if not isinstance(child, ast.ClassDef):
                    counts[name[:-1]] = len(code & set(_span(child)))
            visit(child, name)

    visit(tree, "")
    return counts


def _span(node: ast.AST) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)  # pyright: ignore[reportAttributeAccessIssue]


def _is_schema(node: ast.ClassDef) -> bool:
    names = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    return any(name in SCHEMA_BASES for name in names)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold more than a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    spans = (range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in IGNORED_TOKENS)
    return {line for span in spans for line in span}


def main(folder: str | Path = PACKAGE) -> int:
    """Print the longest modules and functions below a folder. Return 1 if one is over its limit, else 0."""
    modules, functions = {}, {}
    for path in sorted(Path(folder).rglob("*.py")):
        name, source = str(path.relative_to(folder)), path.read_text(encoding="utf-8")
        modules[name] = count_module_lines(source)
        functions |= {f"{name}: {function}": count for function, count in count_function_lines(source).items()}
    exceeded = []
    for kind, counts, limit, unit in (
        ("module", modules, MODULE_LIMIT, "lines"),
        ("function", functions, FUNCTION_LIMIT, "lines of code"),
    ):
        longest = sorted(counts.items(), key=lambda item: -item[1])
        show(make_table([f"longest {kind}s", unit], [[name, str(count)] for name, count in longest[:SHOWN]]))
        exceeded += [
            f"{name} has {count} {unit}. A {kind} may have at most {limit}." for name, count in longest if count > limit
        ]
    show("\n".join(exceeded) or f"All modules have at most {MODULE_LIMIT} lines, all functions {FUNCTION_LIMIT}.")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
