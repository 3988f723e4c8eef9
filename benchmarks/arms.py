"""What the training benchmark times: each arm is a process of its own that makes one update whenever it is asked.

A process of its own has an allocator of its own: `keep_freed_memory` changes it for a whole process. Between two
requests an arm waits on its pipe and takes nothing from the others.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import plain
import torch
from breakdown import breakdown
from torch import Tensor

from hpo_model.config import RunConfig, Scalar, build_run
from hpo_model.hardware import keep_freed_memory, peak_memory_bytes
from hpo_model.training.loop import update
from hpo_model.training.optimizer import ADAM_BETAS
from hpo_model.training.run import Run

VOCABULARY = 8192
DROPOUT = 0.25
BUDGET_TOKENS = 10**9  # so that the learning rate stays what it is
STREAM_TOKENS = 10**6
BATCHES = 8  # that the other arms read in turn
UPDATES_AT_ONCE = {"cpu": 1, "cuda": 10}  # by device: a GPU is only full when the next update waits for it

Update = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms of a comparison share."""

    preset: str
    device: str
    threads: int

    def config(self, **changes: Scalar) -> RunConfig:
        """The run that is timed."""
        return build_run({"preset": self.preset, "dropout": DROPOUT, "budget_tokens": BUDGET_TOKENS, **changes})

    def prepare(self) -> torch.device:
        """Set up this process, and give its device."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(1)
        device = torch.device(self.device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # as ours does: TF32 for what is not bfloat16
        return device


Build = Callable[[Setting], Update]


class RandomText:
    """As much of a tokenized corpus as a run asks for before it evaluates; which ids it holds makes no difference."""

    tokenizer = SimpleNamespace(vocabulary=VOCABULARY)

    def span(self, split: str) -> SimpleNamespace:
        """Random token ids, always the same."""
        del split
        return SimpleNamespace(ids=np.random.default_rng(1).integers(VOCABULARY, size=STREAM_TOKENS))

    def sample(self, split: str, tokens: int) -> None:
        """Nothing: it is never evaluated."""


def our_run(setting: Setting, corpus: Any = None, *, compiled: bool = False, **changes: Scalar) -> Run:
    """A run of ours, ready to train."""
    setting.prepare()
    config = setting.config(**changes)
    run = Run(config, corpus or RandomText(), device=setting.device, compiled=compiled)
    run.network.train()
    return run


def ours(setting: Setting, *, compiled: bool = False, iit: bool = True) -> Update:
    """The update of `hpo_model.training.loop`."""
    run = our_run(setting, compiled=compiled, iit=iit)
    sums = torch.zeros(2, device=run.device)
    return lambda: update(run, sums)


def plain_transformer(setting: Setting, *, our_allocator: bool = False, inner_dropout: bool = True) -> Update:
    """A plain transformer of equal shape; as a user would run it, or with what ours has and it has not."""
    device, config = setting.prepare(), setting.config()
    if our_allocator:
        keep_freed_memory()
    network = plain.PlainTransformer(plain.Shape(**_shape(config), inner_dropout=inner_dropout)).to(device)
    optimizer = plain.make_optimizer(network, config.training.learning_rate, config.training.weight_decay)
    batches = _random_batches(config, device)
    return lambda: plain.update(network, optimizer, *next(batches))


def peer(setting: Setting, *, checkout: Path) -> Update:
    """nanoGPT's network with its own optimizer, from a checkout; the update is the one of its `train.py`."""
    device, config = setting.prepare(), setting.config()
    network, optimizer = peer_network(checkout, config, VOCABULARY, device)
    batches = _random_batches(config, device)

    def update() -> None:
        inputs_BT, targets_BT = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            _, loss = network(inputs_BT, targets_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def peer_network(
    checkout: Path, config: RunConfig, vocabulary: int, device: torch.device
) -> tuple[Any, torch.optim.Optimizer]:
    """nanoGPT's network in the shape of a run of ours, and its optimizer at the run's learning rate."""
    module, shape, training = _load(checkout / "model.py"), config.architecture, config.training
    with contextlib.redirect_stdout(sys.stderr):  # it tells its number of parameters
        network = module.GPT(
            module.GPTConfig(
                block_size=shape.sequence_length,
                vocab_size=vocabulary,
                n_layer=shape.layers,
                n_head=shape.heads,
                n_embd=shape.width,
                dropout=training.dropout,
                bias=False,
            )
        ).to(device)
        optimizer = network.configure_optimizers(training.weight_decay, training.learning_rate, ADAM_BETAS, device.type)
    return network, optimizer


def matrix_product(setting: Setting, *, size: int) -> Update:
    """A product of two square matrices, in the type that training multiplies in."""
    device = setting.prepare()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right, product = torch.randn(3, size, size, device=device, dtype=dtype)
    return lambda: torch.mm(left, right, out=product)


def _shape(config: RunConfig) -> dict[str, Any]:
    shape = config.architecture
    return dict(
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        sequence_length=shape.sequence_length,
        vocabulary=VOCABULARY,
        dropout=DROPOUT,
    )


def _random_batches(config: RunConfig, device: torch.device) -> itertools.cycle[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T), again and again."""
    size = (BATCHES, config.training.batch_size, config.architecture.sequence_length + 1)
    windows = torch.randint(VOCABULARY, size, device=device)
    # nanoGPT takes a view of its targets, which have to be contiguous for that
    return itertools.cycle([(window_BT[:, :-1], window_BT[:, 1:].contiguous()) for window_BT in windows])


def _load(path: Path) -> ModuleType:
    """A Python file as a module under a name that collides with none of ours."""
    spec = importlib.util.spec_from_file_location("peer_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--peer: {path} is not there; name the folder of a nanoGPT checkout")
    module = sys.modules["peer_model"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------------------- processes


class Arm:
    """The benchmark's side of an arm."""

    def __init__(self, build: Build, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        name = getattr(build, "func", build).__name__
        self.process = context.Process(target=_serve, args=(build, setting, theirs), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have a method of `_Timed` called there."""
        try:
            self.line.send((what, arguments))
            return self.line.recv()
        except (EOFError, OSError):
            raise SystemExit(f"the arm {self.process.name} has died; its last words stand above") from None

    def close(self) -> None:
        """Let the process end."""
        self.line.close()
        self.process.join()


class _Timed:
    """What an arm's process can be asked for."""

    def __init__(self, build: Build, setting: Setting) -> None:
        self.device = torch.device(setting.device)
        self.update = build(setting)

    def seconds(self) -> float:
        """Of one update, from an idle device to an idle device; the one before it takes the caches back from others."""
        updates = UPDATES_AT_ONCE[self.device.type]
        self.update()
        self.wait()
        started = time.perf_counter()
        for _ in range(updates):
            self.update()
        self.wait()
        return (time.perf_counter() - started) / updates

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory_bytes(self) -> int | None:
        """Of this arm alone."""
        return peak_memory_bytes(self.device)

    def breakdown(self, updates: int) -> dict[str, float]:
        """Mean seconds of an update by kind of operator, and what it takes beyond them; both measured in turns."""
        whole, by_kind = zip(
            *((self.seconds(), breakdown(self.update, self.device)) for _ in range(updates)), strict=True
        )
        means = {kind: statistics.fmean(each[kind] for each in by_kind) for kind in by_kind[0]}
        return {**means, "interpreter, dispatch, gaps": statistics.fmean(whole) - sum(means.values())}


def _serve(build: Build, setting: Setting, line: Connection) -> None:
    """An arm's main function; ends when nobody listens any more."""
    timed = _Timed(build, setting)
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, arguments = line.recv()
            line.send(getattr(timed, what)(*arguments))


def training_arms(*, compiled: bool, checkout: Path | None) -> dict[str, Build]:
    """All arms that train, by name."""
    arms: dict[str, Build] = {
        "ours": ours,
        "control": functools.partial(ours, iit=False),
        "plain": plain_transformer,
        "plain, our allocator": functools.partial(plain_transformer, our_allocator=True),
        "plain, our allocator, our dropout": functools.partial(
            plain_transformer, our_allocator=True, inner_dropout=False
        ),
    }
    if compiled:
        arms["ours, compiled"] = functools.partial(ours, compiled=True)
    if checkout is not None:
        arms["nanoGPT"] = functools.partial(peer, checkout=checkout)
    return arms
