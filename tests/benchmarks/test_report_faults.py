"""What the GPU's report makes of the words of pytest and of compute-sanitizer."""

import re

import children
import gpu_report
import gpu_tests
import pytest
import report_faults

SERIAL = """
tests/kernels/test_a.py::test_one[cuda] PASSED        [ 33%]
tests/kernels/test_a.py::test_two FAILED              [ 66%]
tests/kernels/test_a.py::test_three SKIPPED (no GPU)  [100%]
"""
PARALLEL = """
[gw1] [ 33%] PASSED tests/kernels/test_a.py::test_one[cuda-a b]
[gw0] [ 66%] ERROR tests/kernels/test_a.py::test_two
"""


def test_outcomes_of_tests_are_read_from_a_log_that_may_be_cut_off():
    done = children.Ended([], "took over 9 s", late=True)
    told = report_faults.outcomes(SERIAL, done)
    assert told == {"passed": 1, "skipped": 1, "failed": ["tests/kernels/test_a.py::test_two"], "ended": done.why}
    told = report_faults.outcomes(PARALLEL, children.Ended([], None))
    assert told == {"passed": 1, "skipped": 0, "failed": ["tests/kernels/test_a.py::test_two"]}
    assert report_faults.outcomes("ImportError", done)["failed"] == ["all of them"]


LACKING = """
_______________ ERROR collecting tests/cli/test_a.py _______________
ImportError while importing test module 'tests/cli/test_a.py'.
E   ModuleNotFoundError: No module named 'tyro'
_____________________ ERROR collecting tests/training ______________________
tests/training/conftest.py:10: in <module>
E   ModuleNotFoundError: No module named 'tyro'
"""
BROKEN = """
_______________ ERROR collecting tests/ops/test_b.py _______________
E   SyntaxError: invalid syntax
"""


def test_files_that_need_a_package_cost_no_other():
    """Pytest goes on with the others, and these are named; a file that is broken fails."""
    ended = children.Ended([], "exit code 1: 1 passed, 2 errors in 3 s")
    told = report_faults.outcomes(SERIAL.replace("FAILED ", "PASSED") + LACKING, ended)
    assert told["passed"] == 2 and told["failed"] == []
    assert told["uncollected"] == dict.fromkeys(
        ("tests/cli/test_a.py", "tests/training"), "ModuleNotFoundError: No module named 'tyro'"
    )
    assert not gpu_report.wrong({"tests": told})
    assert report_faults.outcomes(SERIAL + LACKING + BROKEN, ended)["failed"][-1] == "tests/ops/test_b.py"


def test_a_crash_of_pytest_is_a_failure():
    passed = SERIAL.replace("FAILED ", "PASSED")
    told = report_faults.outcomes(passed, children.Ended([], "exit code 3: INTERNALERROR"))
    assert told["failed"] == ["pytest itself, exit code 3: INTERNALERROR"] and gpu_report.wrong({"tests": told})
    assert report_faults.outcomes(passed, children.Ended([], "took over 9 s", late=True))["failed"] == []


CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
HAZARD = "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warnings)\n"


@pytest.mark.parametrize(
    ("log", "why", "expected"),
    [
        (CLEAN, None, {"passed": True, "said": "ERROR SUMMARY: 0 errors"}),
        (CLEAN.replace("0", "2"), "exit code 9: x", {"passed": False, "said": "ERROR SUMMARY: 2 errors"}),
        (HAZARD, None, {"passed": False}),
        (
            CLEAN,
            "exit code 1: ImportError: no dqcore",
            {"passed": False, "ended": "exit code 1: ImportError: no dqcore"},
        ),
        ("Error: Device not supported\n", "exit code 255: Error", {"skipped": "exit code 255: Error"}),
    ],
)
def test_a_sanitizer_that_cannot_run_has_found_nothing(log, why, expected):
    found = report_faults.verdict(log, children.Ended([], why))
    assert expected.items() <= found.items()
    assert gpu_report.wrong({"sanitizer": {"memcheck": found}}) is (found.get("passed") is False)


def test_all_tests_run_in_parallel_whatever_fails(monkeypatch, tmp_path):
    """A first failure that ended the run would hide the others; what ``gpu_tests`` keeps is chosen by no name."""
    commands = []

    class Child:
        log = tmp_path / "log"

        def __init__(self, command, folder, name):
            commands.append(command)
            self.log.write_text(SERIAL)

        def finish(self, seconds):
            return children.Ended([], None)

    monkeypatch.setattr(report_faults, "Child", Child)
    monkeypatch.setattr(report_faults.importlib.util, "find_spec", lambda name: name == "xdist")
    run = report_faults.Run("cuda", False, re.compile(""), tmp_path)
    assert report_faults.tests(run, 9)["tests"]["passed"] == 1
    (command,) = commands
    assert not {"-x", "--exitfirst", "-k", "--lf"} & {*command} and not any("--maxfail" in word for word in command)
    assert {"-n", "gpu_tests", "--continue-on-collection-errors"} <= {*command} and command.count("tests") == 1


def test_tests_that_a_gpu_decides():
    assert gpu_tests.kept("tests/kernels/test_a.py::test_one", set())
    assert gpu_tests.kept("tests/models/test_a.py::test_one[cuda]", set())
    assert gpu_tests.kept("tests/models/test_a.py::test_one", {"gpu", "slow"})
    assert not gpu_tests.kept("tests/models/test_a.py::test_one", set())
    assert not gpu_tests.kept("tests/kernels/test_a.py::test_one", {"slow"})
    assert gpu_tests.kept("tests/ops/test_a.py::test_one[cuda-float32]", set())
    assert gpu_tests.kept("tests/ops/test_a.py::test_one[float32-nocpu]", set())
    for route in ("cpu", "cpu-reference-float32", "float32-cpu"):
        assert not gpu_tests.kept(f"tests/ops/test_a.py::test_one[{route}]", set())
    assert not gpu_tests.kept("tests/benchmarks/test_gpu_report.py::test_one", set())
