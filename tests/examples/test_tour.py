"""The notebook ``examples/tour.ipynb``: its cells run in order, and what they end with can be shown."""

import ast
import json
from pathlib import Path

import pytest
from PIL.Image import Image

NOTEBOOK = json.loads((Path(__file__).parents[2] / "examples" / "tour.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run(source, namespace):
    """Execute a cell; returns the value of its last line if that is an expression, as a notebook shows it."""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), "tour.ipynb", "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), "tour.ipynb", "eval"), namespace)


def test_the_notebook_is_stored_without_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)
    assert (NOTEBOOK["nbformat"], len({cell["id"] for cell in NOTEBOOK["cells"]})) == (4, len(NOTEBOOK["cells"]))


@pytest.mark.slow
def test_the_tour_runs(capsys):
    namespace, shown = {}, {}
    for cell in CELLS:
        value = run("".join(cell["source"]), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            namespace["steps"] = 3
        if value is not None:
            shown.setdefault(type(value).__name__, []).append(value)
    assert set(shown) == {"Image", "DQVAE", "Encoding", "CodeSequence", "DQTransformer"}
    assert all(isinstance(picture, Image) for picture in shown["Image"])
    for kind in ("Encoding", "CodeSequence"):
        assert all("data:image/png;base64," in value._repr_html_() for value in shown[kind])
    whole, half = shown["CodeSequence"]
    assert 0 < len(half.codes) < len(whole.codes)
    assert "bits per pixel" in capsys.readouterr().out
    assert namespace["found"].images.shape[0] == 3
