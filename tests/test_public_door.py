"""``import finetune``: what a person's own program gets, and pays."""

import ast
import importlib
import subprocess
import sys

import pytest

import finetune

HEAVY = ("torch", "lightning", "timm", "albumentations", "matplotlib", "hydra", "pydantic")


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_cheap_and_changes_nothing():
    # An audit hook hears of every socket and every changed variable of the environment.
    code = f"""
import sys, os, threading, warnings
events = []
watched = ("socket.", "os.putenv", "os.unsetenv", "subprocess.", "os.mkdir", "os.rename")
sys.addaudithook(lambda name, _: events.append(name) if name.startswith(watched) else None)
environment, threads = dict(os.environ), threading.active_count()
filters, path, directory = list(warnings.filters), list(sys.path), os.getcwd()
import finetune
assert not events, events
assert dict(os.environ) == environment
assert threading.active_count() == threads
assert list(warnings.filters) == filters
assert sys.path == path and os.getcwd() == directory
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_the_audit_hook_of_this_test_hears_a_change():
    code = """
import sys, os
events = []
sys.addaudithook(lambda name, _: events.append(name) if name.startswith("os.putenv") else None)
os.environ["X"] = "1"
print(events)
"""
    assert ast.literal_eval(run_python(code)) == ["os.putenv"]


def test_the_commands_module_is_not_imported_by_the_verbs_themselves():
    code = "import sys, finetune; finetune.train, finetune.inspect; print('torch' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_at_most_ten_names():
    assert len(finetune.__all__) <= 10
    assert sorted(set(finetune.__all__)) == finetune.__all__


@pytest.mark.parametrize("name", finetune.__all__)
def test_every_name_is_there_and_documented(name):
    # Importing a subpackage makes it an attribute: one called `export` would hide the verb.
    importlib.import_module("finetune.commands.train")
    thing = getattr(finetune, name)
    assert callable(thing)
    assert thing.__doc__


def test_the_verbs_are_those_of_the_command_line():
    from finetune.config import VERBS

    for_terminals = {"data", "cache", "serve"}
    assert set(VERBS) - for_terminals <= set(finetune.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'finetune' has no attribute 'trian'"):
        finetune.trian  # noqa: B018
    assert not hasattr(finetune, "cli_")


def test_a_mistake_reaches_a_program_as_an_exception():
    with pytest.raises(finetune.FinetuneError, match=r"Did you mean `optimizer\.lr`"):
        finetune.train("optimizer.lrr=1")
