"""How dense and how documented Python code is: a table of folders, and limits for ours.

Lines of code say little about how long a page takes to read. What tells well-kept
libraries apart is how much happens on a line, how long a body is, and whether every
argument is explained. Only the standard library is used, and nothing is imported:

    python tools/style.py                        # this repository, one row a package
    python tools/style.py PATH/optax PATH/mctx   # others
    python tools/style.py --check                # the limits that the tests hold
"""

import argparse
import ast
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OURS = ("fedjax_fm", "kernels", "experiments")
SKIPPED = {"peers", "tests", "test", ".git"}  # of folders: scripts of other libraries
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

MOST_BUSY_PERCENT = 1.5  # lines with three calls or more
MOST_BODY = 60  # lines
MOST_WIDTH = 88  # columns, of nine lines in ten


class Page(NamedTuple):
    """What was counted in one file."""

    path: Path
    widths: list[int]  # of its lines of code
    calls: dict[int, int]  # line: calls that open there
    lambdas: list[int]  # lines where a lambda is bound to a name
    positional: list[int]  # lines of calls with five positional arguments or more
    bodies: list[tuple[int, str]]  # lines of each function's body, and where
    sentences: list[bool]  # per public docstring: whether it is one sentence
    parameters: list[tuple[bool, str]]  # per parameter of a public function: documented


class Row(NamedTuple):
    """One line of the table."""

    name: str
    lines: int
    busy: float  # % of lines with three calls or more
    lambdas: float  # per 1000 lines
    positional: float  # per 1000 lines
    width: float  # 90th percentile of code width
    body: tuple[float, float, int]  # median, 90th percentile, largest
    one_sentence: float  # % of public docstrings
    documented: float  # % of parameters


def code_lines(source: str) -> dict[int, str]:
    """{number: text} of the lines that hold code: no comments, no docstrings."""
    text = source.splitlines()
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT}
    quiet |= {tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    found = set()
    with_newlines = iter(source.splitlines(keepends=True))
    for token in tokenize.generate_tokens(lambda: next(with_newlines, "")):
        if token.type not in quiet:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return {number: text[number - 1] for number in sorted(found)}


def read(path: Path) -> Page:
    """Counts one file."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    page = Page(
        path=path,
        widths=[len(line) for line in code_lines(source).values()],
        calls={},
        lambdas=[],
        positional=[],
        bodies=[],
        sentences=[],
        parameters=[],
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            line = node.func.end_lineno or node.lineno
            page.calls[line] = page.calls.get(line, 0) + 1
            if len(node.args) >= 5:
                page.positional.append(node.lineno)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            if any(isinstance(value, ast.Lambda) for value in _values(node)):
                page.lambdas.append(node.lineno)
        elif isinstance(node, FUNCTIONS):
            page.bodies.append(
                (_body_length(node), f"{path}:{node.lineno} {node.name}")
            )
    for owner, function in public_functions(tree):
        page.parameters.extend(_documented(path, owner, function))
    for node in _public_nodes(tree):
        if text := ast.get_docstring(node):
            page.sentences.append(_is_one_sentence(text))
    return page


def _values(node: ast.Assign | ast.AnnAssign) -> list[ast.expr | None]:
    """What is assigned; the parts of a tuple one by one."""
    return list(node.value.elts) if isinstance(node.value, ast.Tuple) else [node.value]


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the end."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1


def _public_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Top-level functions and classes whose names are public, and public methods."""
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith(
            "_"
        ):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public_nodes(ast.Module(node.body, []))


def public_functions(
    tree: ast.Module, owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.ClassDef | None, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(class or None, function) of all public ones; `__init__` counts as its class."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS):
            if node.name == "__init__" or not node.name.startswith("_"):
                yield owner, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(ast.Module(node.body, []), node)


def _documented(
    path: Path,
    owner: ast.ClassDef | None,
    function: ast.FunctionDef | ast.AsyncFunctionDef,
) -> list[tuple[bool, str]]:
    """For each parameter, whether the docstring names it at the start of a line."""
    text = ast.get_docstring(function) or ""
    if function.name == "__init__" and owner is not None:
        text += "\n" + (ast.get_docstring(owner) or "")
    arguments = function.args
    names = [
        a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    ]
    where = f"{path}:{function.lineno} {function.name}"
    return [
        (is_documented(name, text), f"{where}({name})")
        for name in names
        if name not in ("self", "cls")
    ]


def is_documented(name: str, text: str) -> bool:
    """Whether `name` has an entry (`name: …` or `first, name: …`) in a docstring."""
    entry = rf"^\s*(?:\*{{0,2}}\w+, )*\*{{0,2}}{re.escape(name)}(?:, \*{{0,2}}\w+)*(?: \(.*?\))?:\s"
    return re.search(entry, text + "\n", re.MULTILINE) is not None


def _is_one_sentence(text: str) -> bool:
    return len(re.findall(r"[.!?](?:\s|$)", text)) <= 1 and "\n\n" not in text


def pages_of(folder: Path) -> list[Page]:
    """All Python files below a folder, scripts of other libraries and tests left out."""
    if folder.is_file():
        return [read(folder)]
    paths = sorted(folder.rglob("*.py"))
    kept = [p for p in paths if not SKIPPED & set(p.relative_to(folder).parts)]
    return [read(path) for path in kept]


def row_of(name: str, pages: Sequence[Page]) -> Row:
    """The table's line for these files."""
    widths = [width for page in pages for width in page.widths]
    lines = max(len(widths), 1)
    bodies = [length for page in pages for length, _ in page.bodies] or [0]
    sentences = [one for page in pages for one in page.sentences]
    parameters = [known for page in pages for known, _ in page.parameters]
    return Row(
        name=name,
        lines=len(widths),
        busy=100 * sum(n >= 3 for page in pages for n in page.calls.values()) / lines,
        lambdas=1000 * sum(len(page.lambdas) for page in pages) / lines,
        positional=1000 * sum(len(page.positional) for page in pages) / lines,
        width=_percentile(widths or [0], 0.9),
        body=(statistics.median(bodies), _percentile(bodies, 0.9), max(bodies)),
        one_sentence=100 * sum(sentences) / max(len(sentences), 1),
        documented=100 * sum(parameters) / max(len(parameters), 1),
    )


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def table(rows: Sequence[Row]) -> str:
    """For people and for pages: Markdown."""
    head = (
        "| | lines | ≥ 3 calls, % | named lambdas, /1000 | ≥ 5 positional, /1000 | width p90 "
        "| body p50 / p90 / max | one-sentence docs, % | parameters documented, % |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    cells = [
        f"| {row.name} | {row.lines} | {row.busy:.1f} | {row.lambdas:.1f} "
        f"| {row.positional:.1f} | {row.width:.0f} "
        f"| {row.body[0]:.0f} / {row.body[1]:.0f} / {row.body[2]} "
        f"| {row.one_sentence:.0f} | {row.documented:.0f} |"
        for row in rows
    ]
    return head + "\n".join(cells)


def complaints(pages: Sequence[Page]) -> list[str]:
    """What is beyond the limits, a sentence each."""
    whole = row_of("all", pages)
    found = [
        f"{page.path}:{line} binds a lambda to a name: write a function"
        for page in pages
        for line in page.lambdas
    ]
    found += [
        f"{where}: a body of {length} lines, at most {MOST_BODY}"
        for page in pages
        for length, where in page.bodies
        if length > MOST_BODY
    ]
    if whole.busy > MOST_BUSY_PERCENT:
        found.append(
            f"{whole.busy:.2f} % of all lines hold three calls or more, at most "
            f"{MOST_BUSY_PERCENT} %: name what is between"
        )
    if whole.width > MOST_WIDTH:
        found.append(
            f"one line in ten is wider than {whole.width:.0f}, at most {MOST_WIDTH}"
        )
    return found


def _rows_of_ours() -> list[Row]:
    folders = [ROOT / name for name in OURS]
    inner = sorted(
        p for p in (ROOT / "fedjax_fm").iterdir() if (p / "__init__.py").exists()
    )
    rows = [
        row_of(str(p.relative_to(ROOT)), pages_of(p)) for p in (*inner, *folders[1:])
    ]
    return [*rows, row_of("all", [page for f in folders for page in pages_of(f)])]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, help="others' packages; default: ours"
    )
    parser.add_argument(
        "--check", action="store_true", help="print what is beyond the limits"
    )
    parser.add_argument(
        "--undocumented", action="store_true", help="list parameters without a word"
    )
    parser.add_argument(
        "--busy", action="store_true", help="list lines with three calls or more"
    )
    options = parser.parse_args()
    folders = options.folders or [ROOT / name for name in OURS]
    pages = [page for folder in folders for page in pages_of(folder)]
    if options.check:
        found = complaints(pages)
        print("\n".join(found) or "within the limits")
        sys.exit(bool(found))
    if options.undocumented:
        print(
            "\n".join(
                where for p in pages for known, where in p.parameters if not known
            )
        )
    elif options.busy:
        print(
            "\n".join(
                f"{p.path}:{n}" for p in pages for n, c in p.calls.items() if c >= 3
            )
        )
    elif options.folders:
        print(table([row_of(folder.name, pages_of(folder)) for folder in folders]))
    else:
        print(table(_rows_of_ours()))


if __name__ == "__main__":
    main()
