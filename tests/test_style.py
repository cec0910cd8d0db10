"""Density and direction: what `tools/style.py` counts, NamedTuples by keyword, arrows one way."""

import ast
import re
import subprocess
import sys

from style_tool import ROOT, style

PACKAGES = ("fedjax_fm", "kernels", "experiments")
MOST_POSITIONAL = 3  # fields of a NamedTuple that may be given without their names

# From the bottom to the top; a package may import those above it in this list.
LAYERS = (
    ("kernels", "checks", "spelling", "version", "cpu_devices", "deprecation"),
    ("types",),
    ("trees", "directions", "split", "datasets", "axes", "linalg"),
    ("sparsity",),
    ("channels", "population"),
    ("privacy", "engine", "models"),
    ("systems", "peft", "tasks"),
    ("algorithms", "evaluation", "runs"),
    ("preferences", "robust", "secure"),
    ("callbacks", "wire", "testing", "bridges"),
    ("study",),
    ("finetune",),
    ("audit",),
    ("cli",),
)
# The calls upwards, made when they are needed: `Simulator.run(callbacks=...)` asks for the loop,
# a named benchmark for the partitioner that its row of the table names.
UPWARDS = {("engine", "callbacks"), ("datasets", "population")}


def sources():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "peers" not in path.parts:
                yield path, ast.parse(path.read_text())


def test_our_pages_are_within_the_limits():
    pages = [page for name in PACKAGES for page in style.pages_of(ROOT / name)]
    assert not (found := style.complaints(pages)), "\n".join(found)


def test_what_is_beyond_a_limit_is_found(tmp_path):
    busy = "x = f(g(h(1)))\n"
    long = "def long():\n" + "    a = 1\n" * 61
    (tmp_path / "planted.py").write_text(busy + "square = lambda x: x * x\n" + long)
    found = "\n".join(style.complaints(style.pages_of(tmp_path)))
    assert "planted.py:2 binds a lambda to a name" in found
    assert "long: a body of 61 lines, at most 60" in found
    assert "% of all lines hold three calls or more" in found


def test_the_table_of_another_folder(tmp_path):
    code = 'def double(x):\n    """Doubles.\n\n    Args:\n      x: a number.\n    """\n    return 2 * x\n'
    (tmp_path / "one.py").write_text(code)
    tool = [sys.executable, str(ROOT / "tools" / "style.py"), str(tmp_path)]
    done = subprocess.run(tool, capture_output=True, text=True, check=True)
    assert "| 2 | 0.0 | 0.0 | 0.0 | 16 | 1 / 1 / 1 | 0 | 100 |" in done.stdout


def named_tuples():
    """{name: fields} of all NamedTuples with more than three; None where two share a name."""
    found = {}
    for path, tree in sources():
        for node in ast.walk(tree):
            is_class = isinstance(node, ast.ClassDef)
            if is_class and "NamedTuple" in map(ast.unparse, node.bases):
                fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
                key = (path, node.name)
                found[key] = len(fields)
    return found


def positional(tree, sizes):
    """Lines where a NamedTuple with more than three fields is built without their names."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = ast.unparse(node.func)  # of our own: others are called by their module
        starred = any(isinstance(x, ast.Starred) for x in node.args)
        if sizes.get(name, 0) > MOST_POSITIONAL and not starred:
            yield node.lineno, name


def test_named_tuples_of_more_than_three_fields_are_built_by_keyword():
    sizes = named_tuples()
    everywhere = {}
    for (_, name), size in sizes.items():  # of classes that share a name, the smallest
        everywhere[name] = min(size, everywhere.get(name, size))
    found = []
    for path, tree in sources():
        own = {name: size for (where, name), size in sizes.items() if where == path}
        lines = positional(tree, everywhere | own)
        found += [f"{path.relative_to(ROOT)}:{line} {name}" for line, name in lines]
    assert not found, "\n".join(found)


def test_a_positional_named_tuple_is_found():
    tree = ast.parse("a = Plan(1, 2, 3, 4)\nb = Plan(*rest)\nc = Plan(one=1, two=2)\n")
    assert list(positional(tree, {"Plan": 4})) == [(1, "Plan")]


# Arrows


def imported(tree, lazily=True):
    """Names of modules that a page imports: wherever in it, or when it is imported."""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [x for x in ast.walk(tree) if isinstance(x, inner)]
    later = {id(x) for function in functions for x in ast.walk(function)}
    for node in ast.walk(tree):
        if not lazily and id(node) in later:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedjax_fm" else ("fedjax_fm", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_arrows_run_one_way():
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = set()
    for path, tree in sources():
        owner = module_of(path).split(".")
        if len(owner) < 2 or owner[1] not in height:
            continue
        for name in imported(tree):
            target = name.split(".")
            is_ours = target[0] == "fedjax_fm" and len(target) > 1
            if not is_ours or target[1] not in height or target[1] == owner[1]:
                continue
            if height[target[1]] >= height[owner[1]]:
                wrong.add((owner[1], target[1]))
    assert wrong == UPWARDS


def test_no_module_imports_itself_by_way_of_others():
    modules = {module_of(path): tree for path, tree in sources()}
    arrows = {}
    for name, tree in modules.items():
        # a package's own `__init__` gathers what lies below it
        if any(other.startswith(f"{name}.") for other in modules):
            continue
        found = set(imported(tree, lazily=False)) & set(modules)
        arrows[name] = found - {name}
    circles = [name for name in arrows if reaches(arrows, name)]
    assert not circles, circles


def reaches(arrows, start):
    """Whether there is a way from a module back to itself."""
    seen, waiting = set(), list(arrows.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name == start:
            return True
        if name not in seen:
            seen.add(name)
            waiting.extend(arrows.get(name, ()))
    return False


def test_stacks_are_factorised_in_one_place():
    """Batched LAPACK calls of two CPU devices wait for each other, see fedjax_fm.linalg."""
    names = (
        r"svd|qr|eigh|eigvalsh|det|slogdet|solve|inv|pinv|lstsq|cholesky|matrix_rank"
    )
    call = re.compile(rf"jnp\.linalg\.({names})\(|jax\.scipy\.linalg")
    found = [
        f"{path}: {line.strip()}"
        for path, _ in sources()
        if path.name != "linalg.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if call.search(line)
    ]
    assert not found, "\n".join(found)
