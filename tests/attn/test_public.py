"""The house rules that a reader relies on: names, docstrings, annotations, who imports whom."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys
import typing

import pytest
from jaxtyping import AbstractArray

import attn
from attn import diagnostics, masks, positions, scores

ROOT = pathlib.Path(attn.__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.iter_modules(attn.__path__))

FUNCTIONS = {
    f"{module.__name__}.{name}": function
    for module, names in (
        (attn, attn.__all__),
        (diagnostics, vars(diagnostics)),
        (masks, vars(masks)),
        (positions, vars(positions)),
        (scores, vars(scores)),
        (attn.MultiHeadAttention, ["__call__"]),
    )
    for name in names
    if inspect.isfunction(function := inspect.unwrap(getattr(module, name)))
    and function.__module__.startswith(module.__name__ if inspect.ismodule(module) else "attn")
    and (name == "__call__" or not name.startswith("_"))
}


def test_all_is_what_is_there():
    assert sorted(attn.__all__) == attn.__all__
    for name in attn.__all__:
        assert getattr(attn, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'attention'"):
        attn.attention  # noqa: B018


ACTIONS = [name for name in FUNCTIONS if not name.rpartition(".")[2][0].isupper()]


@pytest.mark.parametrize("name", ACTIONS)
def test_docstring_says_what_is_returned(name):
    assert inspect.getdoc(FUNCTIONS[name]).startswith("Returns ")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_carries_the_shapes(name):
    signature = inspect.signature(FUNCTIONS[name])
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    assert all(p.annotation is not p.empty for p in parameters)
    for p in parameters:
        if p.name in ("query", "key", "value", "x", "table", "positions", "inputs_q"):
            kinds = typing.get_args(p.annotation) or (p.annotation,)
            assert any(issubclass(kind, AbstractArray) for kind in kinds)


@pytest.mark.parametrize("name", MODULES)
def test_module_docstring_explains_its_letters(name):
    module = importlib.import_module(f"attn.{name}")
    document = module.__doc__
    assert document
    source = pathlib.Path(module.__file__).read_text()
    if 'Array, "' in source and name != "arguments":
        assert "Letters: " in document


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failed, tried = doctest.testmod(importlib.import_module(f"attn.{name}"))
    assert failed == 0
    assert tried or name != "dot_product"


def test_library_imports_without_flax():
    """Which takes as long to import as JAX itself; the module that needs it asks for it."""
    code = (
        "import sys, attn; assert not {'flax', 'optax', 'experiments'} & set(sys.modules);"
        "attn.MultiHeadAttention; assert 'flax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def imports(path):
    """Yields the dotted name of all that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


OURS = ("attn", "experiments", "configs", "benchmarks", "tests")
FOLDERS = {
    "attn": ("attn",),
    "experiments": ("attn", "experiments"),
    "configs": ("experiments.config", "experiments.tasks"),
    "benchmarks": ("attn", "benchmarks", "experiments"),
}
FROM_THE_GROUND_UP = (
    *(
        "version",
        "dtypes",
        "devices",
        "target",
        "indices",
        "softmax_state",
        "positions",
        "closures",
        "pairs",
        "dropout",
    ),
    *("fields", "mask_algebra", "masks", "scores", "reference"),
    *("products", "tiles", "spread", "overrides", "tile_sum", "plan", "kernels", "blockwise"),
    *(
        "arguments",
        "dot_product",
        "maps",
        "partial",
        "figures",
        "diagnostics",
        "explanation",
        "sharded",
        "testing",
    ),
    *("multi_head", "__init__"),
)
"""A module may import those before it. ``dot_product`` knows that there are implementations."""


def is_under(name, parents):
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_imports_upwards(folder):
    for path in files(folder):
        for name in imports(path):
            if is_under(name, OURS):
                assert is_under(name, FOLDERS[folder]), f"{path} imports {name}"


def test_only_public_names_are_used_outside():
    public = {f"attn.{name}" for name in (*attn.__all__, "testing", "__version__")}
    for path in (*files("experiments"), *files("configs"), *files("benchmarks")):
        for name in imports(path):
            if is_under(name, ["attn"]):
                assert name == "attn" or is_under(name, public), f"{path} imports {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                assert node.value.id != "attn" or name in public, f"{path} uses {name}"


@pytest.mark.parametrize("path", files("attn"), ids=lambda path: path.stem)
def test_modules_build_on_those_below(path):
    module = path.relative_to(ROOT / "attn").parts[0].removesuffix(".py")
    below = FROM_THE_GROUND_UP[: FROM_THE_GROUND_UP.index(module) + 1]
    allowed = [f"attn.{name}" for name in below]
    for name in imports(path):
        if is_under(name, ["attn"]):
            assert is_under(name, allowed), f"{path.name} imports {name}"
            chooses = ("dot_product", "maps", "figures", "explanation", "sharded")
            knows = is_under(name, ["attn.reference", "attn.blockwise"])
            assert not knows or module in chooses, f"{path.name} imports {name}"
        assert module == "multi_head" or not is_under(name, ["flax"])
        assert not is_under(name, ["optax"])
