#!/usr/bin/env python3
"""Real clients against a real gateway: runs every `test_*` of the modules beside it.

    run.py [MODULE…]     LOOPGATE names the program

A test is a function of the gateway that serves the small models; one that needs another starts it.
Modules run in processes of their own, since some clients register the same protobuf messages, and one
whose client wants other packages than the rest runs in an environment of its own. The last line says how many tests passed and failed; a failure makes the exit status 1.
"""
import importlib
import os
import re
import subprocess
import sys
import time
import traceback

from gateway import Gateway, Skipped, small_models

MODULES = [
    "test_tritonclient_http",
    "test_tritonclient_grpc",
    "test_kserve",
    "test_open_inference",
    "test_perf_analyzer",
    "test_reflection",
    "test_real_models",
    "test_node_models",
    "test_schemathesis",
    "test_feast",
    "test_offline",
    "test_s3",
]
# The Python of a module's own environment.
PYTHONS = {"test_feast": os.environ.get("LOOPGATE_FEAST_PYTHON", sys.executable)}
COUNTS = re.compile(r"(\d+) passed, (\d+) failed, (\d+) skipped\n")


def run_module(module):
    """Runs the tests of one module and tells how each went."""
    passed = failed = skipped = 0
    tests = vars(importlib.import_module(module))
    with Gateway(small_models()) as gateway:
        for name, test in tests.items():
            if not name.startswith("test_") or not callable(test):
                continue
            began = time.monotonic()
            try:
                note, verdict = test(gateway), "ok"
                passed += 1
            except Skipped as why:
                note, verdict = why, "SKIPPED"
                skipped += 1
            except Exception:
                traceback.print_exc(file=sys.stdout)
                note, verdict = None, "FAILED"
                failed += 1
            took = time.monotonic() - began
            print(f"{module}.{name} {verdict} {took:.1f} s{f': {note}' if note else ''}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")


def run_all(modules):
    """Runs modules one after the other; the sums, and what failed."""
    sums, failures = [0, 0, 0], []
    for module in modules:
        counts = None
        command = [PYTHONS.get(module, sys.executable), __file__, "--module", module]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                counts = COUNTS.fullmatch(line)
                if not counts:
                    print(line, end="", flush=True)
                if " FAILED " in line:
                    failures.append(line.split()[0])
        if counts:
            sums = [sum(pair) for pair in zip(sums, map(int, counts.groups()))]
        else:
            sums[1] += 1
            failures.append(f"{module}: ended with status {child.returncode}")
    return sums, failures


def main():
    if sys.argv[1:2] == ["--module"]:
        return run_module(sys.argv[2])
    (passed, failed, skipped), failures = run_all(sys.argv[1:] or MODULES)
    for failure in failures:
        print(f"failed: {failure}")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
