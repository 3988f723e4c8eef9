"""All measurements of a GPU in one command, in under eight minutes, with torch and numpy alone and no network.

python benchmarks/gpu.py [--results FOLDER]

    speed      tiny_iit and large_iit, eager and compiled: tokens/s, share of what products in bfloat16 reach, peak
               memory, beside the control arm and a plain transformer
    graphs     compilations of ten trials and the memory that they leave, and whether an update waits for the GPU
    bitwise    two runs with one seed, eager and compiled
    tests      tests/nightly/test_cuda.py, where pytest and what the suite's fixtures import are installed

Each part is a command of its own, which is printed: what fails or runs out of time is told at the end, and the others
are run all the same. Compiling takes Triton and a C compiler. The results are JSON files, by default in
benchmarks/results.

NOT YET RUN ON A GPU. It was rehearsed from end to end on a CPU, which tells nothing about the branches for CUDA:
    python benchmarks/gpu.py --device cpu --preset nano --updates 2
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LIMIT_S = 8 * 60 - 10
PRESETS = ("tiny_iit", "large_iit")
TESTS = "tests/nightly/test_cuda.py"
TESTS_NEED = ("pytest", "pytest_timeout", "hypothesis", "tokenizers")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts; exit code 1 if one of them has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", action="append", help=f"repeatable; default {' and '.join(PRESETS)}")
    parser.add_argument("--updates", type=int, help="of each arm, for a rehearsal")
    parser.add_argument(
        "--results", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder for the JSON"
    )
    options = parser.parse_args(arguments)
    until = time.monotonic() + LIMIT_S
    ends = {name: run(name, command, until) for name, command in parts(options).items()}
    ends["tests"] = run_tests(until)
    print("\n" + "\n".join(f"{name:8} {end}" for name, end in ends.items()))
    sys.exit(any(end.startswith("FAILED") for end in ends.values()))


def parts(options: argparse.Namespace) -> dict[str, list[str]]:
    """What is run, by name."""
    presets = options.preset or PRESETS
    every = [argument for preset in presets for argument in ("--preset", preset)]
    common = ["--device", options.device, "--results", str(options.results.absolute())]
    common += [] if options.updates is None else ["--updates", str(options.updates)]
    benchmark = [sys.executable, "benchmarks/training.py", *common]
    return {
        "speed": [*benchmark, *every, "--compiled"],
        "graphs": [*benchmark, "--preset", presets[0], "--graphs"],
        "bitwise": [*benchmark, "--preset", presets[0], "--bitwise", "--compiled"],
    }


def run_tests(until: float) -> str:
    """The tests that need a GPU, if they can be run here."""
    missing = [name for name in TESTS_NEED if importlib.util.find_spec(name) is None]
    if missing or not (REPOSITORY / TESTS).is_file():
        return f"left out: {', '.join(missing) or TESTS} is not there"
    return run("tests", [sys.executable, "-m", "pytest", TESTS], until)


def run(name: str, command: list[str], until: float) -> str:
    """How a command ended; it finds our packages whether or not they are installed."""
    print(f"\n{name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=max(until - started, 1))
    except subprocess.TimeoutExpired:
        return "FAILED: no time is left"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.wait()
    took = f"{time.monotonic() - started:.0f} s"
    return f"done in {took}" if code == 0 else f"FAILED with exit code {code} after {took}"


if __name__ == "__main__":
    main()
