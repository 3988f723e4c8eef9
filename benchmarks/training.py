"""How fast training is: tokens/s, share of what the machine's matrix products reach, peak memory, what Φ costs.

python benchmarks/training.py [--preset NAME|all ...] [--device cuda] [--threads N] [--compiled] [--peer NANOGPT]
python benchmarks/training.py --bitwise [--compiled]     two runs with one seed: are their losses equal?
python benchmarks/training.py --graphs                   compilations and waits of ten compiled trials
python benchmarks/training.py --diversity --data TEXT    how good the estimate of attention diversity is

Arms take turns, update by update, forwards and then backwards: ours; its control arm, which is ours without Φ, memory
and noise; a plain transformer of equal shape in PyTorch's own modules, as it comes, then with our allocator settings,
then also with dropout only where ours has it; nanoGPT. All have 8,192 token ids, dropout 0.25, random text.

A token takes 6 floating-point operations for each weight of a matrix, the output layer included and embeddings not, and
12 · layers · width · length for attention, as though all of its square were needed (the convention of PaLM, Chowdhery
et al. 2022, appendix B), or half of that for the causal half. What Φ and memory compute beside it counts as nothing
done.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import checks
from arms import DROPOUT, VOCABULARY, Arm, Build, Setting, matrix_product, training_arms
from results import FOLDER, keep

from hpo_model.config import PRESETS, Architecture
from hpo_model.hardware import cpu_cores, gpu_count

WARM_UP = 3  # rounds: memory is asked for, graphs are compiled
MATRICES = {"cpu": (2048, 4096), "cuda": (4096, 8192)}  # by device: rows and columns
BROKEN_DOWN = 5  # updates


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it and keep it."""
    options = parse(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of all arms: threads that wait take no core from others
    presets = tuple(PRESETS) if "all" in options.preset else tuple(dict.fromkeys(options.preset))
    modes: dict[str, Callable[[Setting, argparse.Namespace], Any]] = {
        "bitwise": measure_bitwise,
        "graphs": measure_graphs,
        "diversity": measure_diversity,
    }
    mode = next((name for name in modes if getattr(options, name)), "training")
    measure = modes.get(mode, measure_speed)
    figures = {
        preset: measure(Setting(preset=preset, device=options.device, threads=options.threads), options)
        for preset in presets
    }
    setting = {"threads": options.threads, "vocabulary": VOCABULARY, "dropout": DROPOUT}
    keep(f"{mode}-{options.device}", {**setting, "presets": figures}, device=options.device, folder=options.results)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=(*PRESETS, "all"), help="repeatable; default tiny_iit")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=cpu_cores(), help="of each arm; default: all cores")
    parser.add_argument("--updates", type=int, help="default 30 of each arm, 200 for --bitwise, 500 for --diversity")
    parser.add_argument("--matrix", type=int, action="append", help="rows of the square matrices; repeatable")
    parser.add_argument("--compiled", action="store_true", help="ours compiled, too")
    parser.add_argument("--peer", type=Path, help="folder of a nanoGPT checkout, whose model.py is timed beside")
    parser.add_argument("--data", default="python-docs", help="text for --diversity: a name, or a folder")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder for the JSON")
    modes = parser.add_mutually_exclusive_group()
    for mode in ("bitwise", "graphs", "diversity"):
        modes.add_argument(f"--{mode}", action="store_true")
    options = parser.parse_args(arguments)
    options.preset = options.preset or ["tiny_iit"]
    if options.updates is not None and options.updates < 2:
        parser.error(f"--updates must be at least 2, got {options.updates}")
    if options.device == "cuda" and not gpu_count():
        parser.error("--device cuda: PyTorch sees no GPU")
    return options


# ------------------------------------------------------------------------------------------------ speed


def measure_speed(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """All arms beside each other; printed as it is returned."""
    sizes = options.matrix or MATRICES[setting.device]
    products: dict[str, Build] = {f"{size} x {size}": functools.partial(matrix_product, size=size) for size in sizes}
    training = training_arms(compiled=options.compiled, checkout=options.peer)
    with contextlib.ExitStack() as stack:
        arms = {
            name: stack.enter_context(contextlib.closing(Arm(build, setting)))
            for name, build in {**training, **products}.items()
        }
        times = alternate(arms, options.updates or 30)
        peaks = {name: arms[name].ask("peak_memory_bytes") for name in training}
        kinds = arms["ours"].ask("breakdown", BROKEN_DOWN)
    rates = {name: 2 * size**3 / statistics.median(times[name]) for name, size in zip(products, sizes, strict=True)}
    run = setting.config()
    figures = {
        "batch_size": run.training.batch_size,
        "sequence_length": run.architecture.sequence_length,
        "updates": len(times["ours"]),
        "gflop_per_s_of_matrix_products": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "arms": {
            name: arm_figures(run.architecture, times[name], run.tokens_per_step, max(rates.values()), peaks[name])
            for name in training
        },
        "ours_is_times_as_fast_as": {name: paired(times[name], times["ours"]) for name in training if name != "ours"},
        "ours_by_kind_ms": {kind: round(1000 * seconds, 2) for kind, seconds in kinds.items()},
    }
    show_speed(setting, figures)
    return figures


def alternate(arms: Mapping[str, Arm], updates: int) -> dict[str, list[float]]:
    """Seconds of each arm's updates; the order is turned round each time: no arm always follows the same one."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(WARM_UP + updates):
        for name in order:
            times[name].append(arms[name].ask("seconds"))
        order.reverse()
    return {name: seconds[WARM_UP:] for name, seconds in times.items()}


def arm_figures(
    shape: Architecture, seconds: Sequence[float], tokens: int, rate: float, peak_bytes: int | None
) -> dict[str, float | None]:
    """Of one arm that trains."""
    tokens_per_s = tokens / statistics.median(seconds)
    return {
        "ms": round(1000 * statistics.median(seconds), 1),
        "tokens_per_s": round(tokens_per_s),
        "share_of_matrix_products": round(tokens_per_s * flops_per_token(shape) / rate, 3),
        "share_causal_half": round(tokens_per_s * flops_per_token(shape, causal_half=True) / rate, 3),
        "peak_memory_mib": None if peak_bytes is None else round(peak_bytes / 2**20),
    }


def flops_per_token(shape: Architecture, *, causal_half: bool = False) -> int:
    """Floating-point operations of a training update per token, by the convention at this file's head."""
    weights = 12 * shape.layers * shape.width**2 + VOCABULARY * shape.width
    attention = 12 * shape.layers * shape.width * shape.sequence_length
    return 6 * weights + (attention // 2 if causal_half else attention)


def paired(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of neighbouring updates."""
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(median, 3), "lower_quartile": round(lower, 3), "upper_quartile": round(upper, 3)}


def show_speed(setting: Setting, figures: Mapping[str, Any]) -> None:
    """Print what was measured."""
    rates = ", ".join(f"{name}: {rate:,.0f}" for name, rate in figures["gflop_per_s_of_matrix_products"].items())
    print(
        f"{setting.preset} on {setting.device}, {setting.threads} threads, batch {figures['batch_size']} x "
        f"{figures['sequence_length']}, medians of {figures['updates']} updates in turns\n"
        f"matrix products, GFLOP/s: {rates}\n"
        f"{'':36} {'ms':>8} {'tokens/s':>9} {'share':>6} {'causal':>6} {'MiB':>6}  ours is"
    )
    for name, arm in figures["arms"].items():
        ratio = figures["ours_is_times_as_fast_as"].get(name)
        compared = (
            "" if ratio is None else "{median:.2f} x ({lower_quartile:.2f} to {upper_quartile:.2f})".format(**ratio)
        )
        print(
            f"{name:36} {arm['ms']:8.1f} {arm['tokens_per_s']:9,} {arm['share_of_matrix_products']:6.1%} "
            f"{arm['share_causal_half']:6.1%} {arm['peak_memory_mib'] or '-':>6}  {compared}"
        )
    cost = 1 / figures["ours_is_times_as_fast_as"]["control"]["median"] - 1
    print(f"Φ, memory and noise add {cost:.1%} to an update of the control arm; where an update of ours goes:")
    whole = sum(figures["ours_by_kind_ms"].values())
    for kind, milliseconds in figures["ours_by_kind_ms"].items():
        print(f"  {kind:36} {milliseconds:8.1f} ms {milliseconds / whole:6.1%}")


# ------------------------------------------------------------------------------------------ other modes


def measure_bitwise(setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two runs with one seed, eager and, if asked for, compiled."""
    found = []
    for compiled in (False, True)[: 1 + options.compiled]:
        found.append(checks.bitwise(setting, options.updates or 200, compiled=compiled))
        print(f"{setting.preset} on {setting.device}, two runs with one seed: {found[-1]}", flush=True)
    return found


def measure_graphs(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Compilations of ten trials, and waits for the device."""
    del options
    graphs = checks.compilations(setting)
    print(f"{setting.preset} on {setting.device}, ten compiled trials: {graphs}", flush=True)
    waits = [checks.synchronisations(setting, compiled=compiled) for compiled in (False, True)]
    print(f"{setting.preset} on {setting.device}, waits for the device: {waits}", flush=True)
    return {"compilations": graphs, "waits": waits}


def measure_diversity(setting: Setting, options: argparse.Namespace) -> list[dict[str, float]]:
    """The estimate of attention diversity beside the exact one."""
    found = checks.diversity(setting, options.data, options.updates or 500)
    print(f"{setting.preset} on {options.data}, attention diversity, |approximate - exact|:")
    for each in found:
        print(
            f"  after {each['updates']:5} updates: mean {each['mean_error']:.4f}, "
            f"largest {each['largest_error']:.4f}, exact {each['exact']:.3f}"
        )
    return found


if __name__ == "__main__":
    main()
