"""`hpo run`, `hpo worker`, `hpo replicate`: commands that start workers."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from hpo.commands.options import (
    INTERRUPTED,
    DataOption,
    StorageOption,
    StudyArgument,
    TimeoutOption,
    named_or_last,
    open_studies,
    timeout_in_s,
)

if TYPE_CHECKING:
    from hpo.search.request import Request
    from hpo.search.session import Ending, Session

FinalistsOption = Annotated[
    bool, typer.Option("--finalists/--no-finalists", help="Run the best again when the search is over.")
]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of every command that starts workers: how many, on what, for how long."""

    data: DataOption = None
    workers: Annotated[
        str, typer.Option(metavar="N|auto", help="Processes; auto: one per GPU, or what is fastest on the CPU.")
    ] = "auto"
    gpus: Annotated[str | None, typer.Option(metavar="0,2", help="GPUs to use; default: all that are visible.")] = None
    trials_per_gpu: Annotated[
        int | None, typer.Option(metavar="K", help="Trials side by side on each GPU, as far as they fit.")
    ] = None
    executor: Annotated[Literal["local", "ray", "slurm"], typer.Option(help="Who starts the workers, and where.")] = (
        "local"
    )
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Head of a Ray cluster; default: as Ray finds it.")
    ] = None
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For Slurm, repeatable: partition=gpu, time=240 (minutes)."),
    ] = None
    timeout: TimeoutOption = None
    storage: StorageOption = None

    def request(self, study: str, trials: int | None = None) -> Request:
        """What these options ask for."""
        from hpo.executors.resources import ResourceRequest, parse_gpus, parse_workers
        from hpo.search.request import Executor, Request, parse_slurm_options

        return Request(
            study=study,
            trials=trials,
            data=self.data,
            resources=ResourceRequest(
                workers=parse_workers(self.workers), gpus=parse_gpus(self.gpus), trials_per_gpu=self.trials_per_gpu
            ),
            executor=Executor(
                kind=self.executor, ray_address=self.ray_address, slurm_options=parse_slurm_options(self.slurm or ())
            ),
        )

    def session(self, request: Request, **options: bool) -> Session:
        """A session that shows its progress on this terminal."""
        from rich.console import Console

        from hpo.database.url import storage_url
        from hpo.home import Home
        from hpo.monitor.console import open_view
        from hpo.search.session import Session

        home = Home.from_environment()
        return Session(
            request=request,
            url=storage_url(self.storage, home),
            home=home,
            open_view=lambda board: open_view(board, Console()),
            timeout_s=timeout_in_s(self.timeout),
            **options,
        )


def takes_worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command each of the `WorkerOptions` as an option of its own, in the place of its parameter `options`."""
    hints, fields = get_type_hints(WorkerOptions, include_extras=True), dataclasses.fields(WorkerOptions)
    shared = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.name != "options"]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        options = WorkerOptions(**{each.name: values.pop(each.name) for each in fields})
        command(**values, options=options)

    wrapped.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return wrapped


@takes_worker_options
def run(
    *,
    study: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A shipped study (see `hpo studies`) or a .toml file.")
    ],
    trials: Annotated[
        int | None, typer.Option(help="The total that the study ends with; default: the study file's.")
    ] = None,
    finalists: FinalistsOption = True,
    options: WorkerOptions,
) -> None:
    """Run a study until it has TRIALS finished trials, and its finalists; run it again to resume."""
    from hpo.search.prepare import prepare
    from hpo.search.session import search

    session = options.session(options.request(study, trials), finalists=finalists)
    _exit(search(session, prepare))


@takes_worker_options
def worker(
    *,
    study: Annotated[str, typer.Option(metavar="NAME", help="A study that `hpo run` made, here or elsewhere.")],
    finalists: FinalistsOption = True,
    options: WorkerOptions,
) -> None:
    """Work on a study that is in the database already, beside its other workers, until it is done."""
    from hpo.search.prepare import join
    from hpo.search.session import search

    session = options.session(options.request(study), finalists=finalists, concludes=False)
    _exit(search(session, join))


@takes_worker_options
def replicate(
    *,
    study: StudyArgument = None,
    replicates: Annotated[
        int | None, typer.Option(help="Fresh seeds that each candidate is to have; default: the study file's.")
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(help="Candidates that there are to be, beside the baseline; default: the study file's."),
    ] = None,
    test_again: Annotated[
        bool, typer.Option("--test-again", help="Use the test split once more, for the present winner.")
    ] = False,
    options: WorkerOptions,
) -> None:
    """Run the best trials of a study and its baseline again, under the same fresh seeds; both options are totals."""
    from hpo.search.session import replicate as run_again

    if study is None:
        study = named_or_last(None, open_studies(options.storage)[1])
    session = options.session(options.request(study), test_again=test_again)
    _exit(run_again(session, candidates, replicates))


def _exit(ending: Ending) -> None:
    if ending == "interrupted":
        raise typer.Exit(INTERRUPTED)
