"""The package as a whole: what it imports, in which direction, and that it installs complete."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "vlm_jax").rglob("*.py")) + sorted((ROOT / "configs").glob("*.py"))
FOREIGN = ("tensorflow", "torch", "tf_keras", "keras")


def imports(path: pathlib.Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_imports_tensorflow_or_torch(path):
    assert not [name for name in imports(path) if name.split(".")[0] in FOREIGN]


def test_importing_everything_brings_in_neither_and_starts_no_device():
    script = (
        "import pkgutil, importlib, sys, vlm_jax\n"
        "for m in pkgutil.walk_packages(vlm_jax.__path__, 'vlm_jax.'):\n"
        "    importlib.import_module(m.name)\n"
        f"print([n for n in {FOREIGN} if n in sys.modules])\n"
        "import jax\n"
        "print(jax._src.xla_bridge._backends)\n"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["[]", "{}"], done.stdout + done.stderr


# What may not be imported from where: imports point downwards only.
UPWARDS = {
    "losses": ("vlm_jax",),
    "nn": ("models", "tasks", "step", "train", "run", "data", "optim", "checkpoint", "evaluate", "experiment"),
    "models": ("tasks", "step", "train", "run", "data", "optim", "checkpoint", "evaluate", "experiment"),
    "tasks": ("step", "train", "run", "startup", "experiment", "checkpoint", "evaluate", "optim"),
    "data": ("models", "nn", "tasks", "step", "train", "run", "optim", "checkpoint", "evaluate", "experiment"),
    "optim": ("models", "nn", "tasks", "step", "train", "run", "data", "checkpoint", "evaluate", "experiment"),
    "checkpoint": ("models", "nn", "tasks", "step", "train", "run", "data", "optim", "evaluate", "experiment"),
    "evaluate": ("models", "nn", "tasks", "step", "train", "run", "optim", "checkpoint", "experiment"),
    "report": (
        "models",
        "nn",
        "tasks",
        "step",
        "train",
        "run",
        "data",
        "optim",
        "checkpoint",
        "evaluate",
        "experiment",
    ),
}


@pytest.mark.parametrize("folder", list(UPWARDS))
def test_imports_point_downwards(folder):
    for path in (ROOT / "vlm_jax" / folder).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "vlm_jax":
                assert "vlm_jax" not in UPWARDS[folder], f"{path}: {name}"
                assert len(parts) < 2 or parts[1] not in UPWARDS[folder], f"{path}: {name}"


@pytest.mark.parametrize("folder", ["models", "tasks"])
def test_models_and_tasks_are_given_their_devices(folder):
    for path in (ROOT / "vlm_jax" / folder).rglob("*.py"):
        assert "jax.devices" not in path.read_text() and "local_devices" not in path.read_text(), path
    assert "jax.devices" not in (ROOT / "vlm_jax" / "step.py").read_text()


def test_only_nn_knows_flax():
    users = {str(p.relative_to(ROOT)) for p in FILES if any(n.split(".")[0] == "flax" for n in imports(p))}
    assert users and all(user.startswith("vlm_jax/nn/") for user in users)


def test_every_package_and_recipe_is_installed(tmp_path):
    """What setup.py lists is what there is."""
    script = "import setuptools, json; setuptools.setup = lambda **k: print(json.dumps(k['packages'])); import setup"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    listed = set(ast.literal_eval(done.stdout))
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "vlm_jax").rglob("__init__.py")}
    assert listed == folders | {"vlm_jax.configs", "vlm_jax.launch_templates"}
    orphans = [p for p in (ROOT / "vlm_jax").rglob("*.py") if not (p.parent / "__init__.py").exists()]
    assert not orphans


def test_no_file_is_two_things():
    """About 400 lines is where a file becomes two."""
    long = {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in FILES}
    assert not {name: count for name, count in long.items() if count > 420}
