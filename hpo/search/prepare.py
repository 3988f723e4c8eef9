"""Open a study or create it, and check everything that can be wrong before a worker starts.

Nothing is written before the checks have passed but caches of text and an empty database.
"""

from __future__ import annotations

import logging
import platform
import time
import uuid
from importlib.metadata import version

import optuna
import torch

from hpo.database.connection import open_database, storage_errors
from hpo.database.url import is_missing
from hpo.errors import UsageError
from hpo.executors.ray_cluster import has_gpus
from hpo.executors.resources import check_resources
from hpo.executors.slurm import asks_for_gpus, check_slurm
from hpo.home import Home
from hpo.search.launch import Launch, OpenStudy, plan_launch
from hpo.search.request import Request
from hpo.study.sections import Profile
from hpo.study.spec import StudySpec
from hpo.study.toml import load_study_file
from hpo.sweep.compatibility import check_compatible, check_text, network_facts, preset_changes
from hpo.sweep.corpus import load_text
from hpo.sweep.record import CorpusFacts, NetworkFacts, SweepRecord, TokenizerFacts
from hpo.sweep.sweep import create_sweep, find_sweep, open_sweep, update_metadata
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.hardware import default_device, describe, gpu_count
from hpo_reports.records.names import STUDY_LAST_RUN

logger = logging.getLogger(__name__)


def prepare(request: Request, url: str, home: Home) -> Launch:
    """Check everything, load the text, and open the study or create it.

    Raises:
        HpoError, ModelError: what is wrong, in one line; no study was changed.
    """
    device = _training_device(request, url)
    spec = load_study_file(request.study, device)
    total = _total(request, spec)
    with storage_errors(url):
        database = None if is_missing(url) else open_database(url, create=True)
        sweep = find_sweep(database, spec.name) if database is not None else None
        if sweep is not None:
            check_compatible(sweep.record, spec)
            if changes := preset_changes(sweep.record):
                logger.info("study %s keeps the values that its presets had: %s", spec.name, changes)
        corpus = load_text(spec, request.data, None if sweep is None else sweep.record, home, logger.info)
        if sweep is None:
            network = network_facts(spec, corpus)  # before there is a database
            database = database or open_database(url, create=True)
            hardware = describe(device) if request.executor.kind == "local" else f"{request.executor.kind}, {device}"
            sweep = create_sweep(database, _record(spec, corpus, network, hardware))
        stop_requests = sweep.row.stop_requests()  # one that comes from here on is meant for this run too
        check_compatible(sweep.record, spec, corpus)  # another process may have made the study meanwhile
        update_metadata(sweep, spec)
        sweep.slots.ensure(total)
        sweep.study.set_user_attr(STUDY_LAST_RUN, time.time())
        study = OpenStudy(request=request, url=url, home=home, device=device, sweep=sweep, corpus=corpus)
        return plan_launch(study, total, stop_requests)


def join(request: Request, url: str, home: Home) -> Launch:
    """Get ready to work on a study of the database, from its own specification and the same text.

    Raises:
        HpoError, ModelError: what is wrong, in one line; nothing was changed.
    """
    device = _training_device(request, url)
    if request.resources.workers == 0:
        raise UsageError("--workers 0: a worker that is to join has to work")
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), request.study)
        check_compatible(sweep.record)
        stop_requests = sweep.row.stop_requests()
        corpus = load_text(sweep.spec, request.data, sweep.record, home, logger.info)
        check_compatible(sweep.record, corpus=corpus)
        if sweep.spec.profile != device:
            logger.info(
                "study %s was made with profile %s; here it trains on %s", sweep.spec.name, sweep.spec.profile, device
            )
        study = OpenStudy(request=request, url=url, home=home, device=device, sweep=sweep, corpus=corpus)
        return plan_launch(study, None, stop_requests)


def open_study(request: Request, url: str, home: Home) -> OpenStudy:
    """Open a study of the database and its text, for its finalists: they are new runs, whatever trained the search.

    Raises:
        HpoError, ModelError: what is wrong, in one line; nothing was changed.
    """
    device = _training_device(request, url)
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), request.study)
        corpus = load_text(sweep.spec, request.data, sweep.record, home, logger.info)
        check_text(sweep.record, corpus)
    return OpenStudy(request=request, url=url, home=home, device=device, sweep=sweep, corpus=corpus)


def _training_device(request: Request, url: str) -> Profile:
    """What the workers train on, which also decides the study's profile.

    Raises:
        UsageError, WorkerError, StorageError: the machine, or the cluster, does not have what was asked for.
    """
    resources, executor = request.resources, request.executor
    for kind, flag, value in (
        ("ray", "--ray-address", executor.ray_address),
        ("slurm", "--slurm", executor.slurm_options),
    ):
        if value and executor.kind != kind:
            raise UsageError(f"{flag} goes with --executor {kind}")
    if executor.kind == "local":
        device: Profile = "cuda" if default_device() == "cuda" else "cpu"
        check_resources(resources, device, gpu_count())
        return device
    if resources.gpus is not None:
        raise UsageError(
            f"--gpus names GPUs of this machine; with --executor {executor.kind} the cluster hands them out"
        )
    if executor.kind == "ray":
        device = "cuda" if has_gpus(executor.ray_address) else "cpu"
    else:
        if resources.workers is None or resources.trials_per_gpu is not None:
            raise UsageError("--executor slurm needs --workers N, the number of its tasks, and no --trials-per-gpu")
        check_slurm(url, executor.slurm_options)
        device = "cuda" if asks_for_gpus(executor.slurm_options) else "cpu"
    check_resources(resources, device)
    return device


def _total(request: Request, spec: StudySpec) -> int:
    if request.trials is not None and request.trials < 1:
        raise UsageError(f"--trials is the total that the study ends with and must be at least 1, got {request.trials}")
    total = request.trials or spec.default_total()
    most = spec.max_trials()
    if most is not None and total > most:
        raise UsageError(f"--trials {total}: the grid of {spec.name} has {most} points, baseline included")
    return total


def _record(spec: StudySpec, corpus: TokenizedCorpus, network: NetworkFacts | None, hardware: str) -> SweepRecord:
    return SweepRecord(
        uid=uuid.uuid4().hex[:8],
        created_at=time.time(),
        profile=spec.profile,
        spec=spec,
        corpus=CorpusFacts(
            name=corpus.corpus_name,
            source=corpus.corpus_source,
            origin=corpus.corpus_origin,
            digest=corpus.corpus_digest,
            tokens={split: corpus.tokens(split) for split in corpus.splits},
        ),
        tokenizer=TokenizerFacts(
            kind=corpus.tokenizer.kind, vocabulary=corpus.tokenizer.vocabulary, digest=corpus.tokenizer.digest
        ),
        network=network,
        hardware=hardware,
        versions={
            "hpo": version("assay-hpo"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "optuna": optuna.__version__,
        },
    )
