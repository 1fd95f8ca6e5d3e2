"""Old import paths: they give the new modules' objects, and say where those are now."""

import importlib
import pickle
import subprocess
import sys
import warnings

import pytest

import dqcore
from dqcore.compat import moved
from dqcore.compat.moved import MOVED


def import_anew(name):
    """Import a module as if it had not been imported before."""
    sys.modules.pop(name, None)
    return importlib.import_module(name)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_the_new_modules_objects(old):
    with pytest.warns(DeprecationWarning, match=f"^{old} has moved to {' and '.join(MOVED[old])}$"):
        module = import_anew(old)
    places = [importlib.import_module(place) for place in MOVED[old]]
    if len(places) == 1:
        assert module is places[0]
    else:
        assert all(getattr(module, name) is getattr(place, name) for place in places for name in place.__all__)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_hides_nothing(old):
    """Importing a module sets its name in the package that it lies in."""
    package, _, name = old.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert name not in getattr(importlib.import_module(package), "__all__", ())


def test_the_warning_names_the_users_line():
    """Python shows such warnings by default in the program that is run."""
    script = "\n\nimport dqcore.models.dqvae\nfrom dqcore.evaluation import psnr"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    told = "<string>:3: DeprecationWarning: dqcore.models.dqvae has moved to dqcore.models.tokenizers.dqvae"
    assert told in done.stderr
    told = "<string>:4: DeprecationWarning: dqcore.evaluation has moved to dqcore.metrics and dqcore.inference.measure"
    assert told in done.stderr


def test_nothing_in_the_package_uses_an_old_path():
    """Neither ``import dqcore`` nor any of its modules; and old paths are no modules that a walk would find."""
    script = """
import importlib, pkgutil, warnings
import dqcore
from dqcore.compat.moved import MOVED
warnings.filterwarnings("error", message="dqcore", category=DeprecationWarning)
names = [module.name for module in pkgutil.walk_packages(dqcore.__path__, "dqcore.")]
assert len(names) > 100 and not set(names) & set(MOVED), names
for name in names:
    if name not in ("dqcore.__main__", "dqcore._C") and not name.startswith("dqcore.kernels"):
        importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-W", "error:dqcore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_was_pickled_under_an_old_path_is_read():
    config = dqcore.DQVAEConfig()
    written = pickle.dumps(config, protocol=0)
    old = written.replace(dqcore.DQVAEConfig.__module__.encode(), b"dqcore.models.dqvae")
    assert old != written
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("dqcore.models.dqvae", None)
        assert pickle.loads(old) == config
    assert type(pickle.loads(old)) is dqcore.DQVAEConfig
    assert b"dqcore.models.tokenizers.dqvae" in pickle.dumps(pickle.loads(old), protocol=0)


def test_reloading(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = import_anew("dqcore.metrics.rank")
        assert importlib.reload(import_anew("dqcore.evaluation.rank")) is module
        package = import_anew("dqcore.evaluation")
        assert importlib.reload(package) is package
    before = len(sys.meta_path)
    importlib.reload(moved).install()
    assert len(sys.meta_path) == before  # one finder, however often it is installed
