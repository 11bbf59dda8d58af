"""Many workers for one list of slides: processes on this machine, or actors of Ray.

A worker has a GPU, or a share of the CPU cores, and loads the models once. What it makes lies in
the run folder, and nothing else counts: the command that starts the workers ends as `--collect`
does, and any mix of parts, workers and Ray gives the same files.

`--workers N` starts N processes of the same command, one for each part (`bach.core.shards`).
`--engine ray` gives out slides one by one, those with most tissue first, to whoever is free, in
any machine of a Ray cluster; its record is that of part 1 of 1.
"""

import collections
import contextlib
import dataclasses
import importlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from bach.core import options
from bach.core.commands import ROOT
from bach.core.errors import InputError
from bach.core.files import write_json
from bach.core.log import log, setup_logging
from bach.core.options import SlideScript
from bach.core.run import Run
from bach.core.text import duration
from bach.slide_by_slide import check_slides, mpp_of
from bach.slides import Slide
from bach.tasks import task
from bach.tissue import find_tissue

_RESTARTS = 100  # of one worker; a slide costs two at most
_TRIES = 2  # of a slide that ends its worker, or comes to an error that is none of ours
_LOOK_S = 1.0  # how long Ctrl-C may have to wait
_CONNECT_S = 10.0  # for a cluster to answer
_COLOR = re.compile(r"\x1b\[\d+m")  # in Ray's tracebacks
_SILENT_S = 60.0  # after which it is said that there is no worker


def spreads(args: SlideScript) -> bool:
    """Whether a command is to have its slides done by workers.

    Raises:
        InputError: If it is to do a part only.
    """
    if args.collect or (args.engine == "plain" and args.workers in (None, 1)):
        return False
    if args.shard is not None:
        raise InputError(
            "A part of a run is done by one process.\n"
            f"Received: --shard={args.shard}, --engine={args.engine}, --workers={args.workers}.\n"
            "Leave out --shard: workers share all slides."
        )
    return True


def spread(slides: pd.DataFrame, args: SlideScript, main: Callable[[list[str]], int]) -> int:
    """Have workers do the slides, then bring together what they made.

    Args:
        slides: Table of `image_id`, `path` and `part`, and of `mpp` where that is known.
        args: Options of the script.
        main: The script's, which brings together.

    Returns:
        Exit code.

    Raises:
        InputError: If the workers cannot be started, or a slide is missing in the end.
    """
    if args.engine == "ray":
        _by_ray(slides, args)
    else:
        _by_processes(args, min(args.workers or len(gpus()) or _cores(), len(slides)))
    return main(options.words(args, collect=True))


# Processes


def _by_processes(args: SlideScript, count: int) -> None:
    """Run the parts of a command side by side; all end if this process is asked to."""
    script, devices = _script(args), gpus()
    processes: list[subprocess.Popen] = []
    try:
        for k in range(count):
            own = {"workers": None, "resume": True, "shard": f"{k + 1}/{count}"}
            words = [sys.executable, str(script), *options.words(args, **own)]
            environment = _threads(_cores() // count)
            if devices:
                environment["CUDA_VISIBLE_DEVICES"] = devices[k % len(devices)]
            # Their results lie in the run folder, which is named once, in the end.
            processes.append(
                subprocess.Popen(words, env=os.environ | environment, stdout=subprocess.DEVNULL)
            )
        codes = [process.wait() for process in processes]
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    if not {0, 1} & set(codes):
        raise InputError(
            f"The {count} workers must be able to do their parts.\n"
            f"Received: exit codes {', '.join(map(str, codes))}.\n"
            "See above what they said; then run the same command with --resume."
        )


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them.

    No framework is asked: it would keep them.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


def _cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(count: int) -> dict[str, str]:
    """What tells the frameworks how many threads to use, where nobody has said so."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {name: str(max(count, 1)) for name in names if name not in os.environ}


def _script(args: SlideScript) -> Path:
    """The script whose options these are."""
    return Path(str(sys.modules[type(args).__module__].__file__)).resolve()


# Ray


class Worker:
    """Does slides, in a process of its own; what it returns is JSON.

    Args:
        script: Name of the script's module; its `worker(args)` loads the models and returns
            what does the slide of a row.
        words: Its command line.
        log_file: Where to log.

    Attributes:
        refused: Why it cannot work, or None.
    """

    def __init__(self, script: str, words: Sequence[str], log_file: str):
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        setup_logging(log_file)
        log.info("worker: process %d on %s", os.getpid(), platform.node())
        module = importlib.import_module(script)
        self._args, self.refused = module.parse_args(list(words)), None
        try:
            self._work = module.worker(self._args)
        except InputError as error:
            self.refused = str(error)

    def check(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Open a slide: `failed`, why it cannot be used, or `mm2`, about how much tissue it has."""
        try:
            failures = check_slides(pd.DataFrame([row]), self._args)
            if failures:
                return {"failed": failures[str(row["image_id"])]}
            with Slide(row["path"], mpp=mpp_of(SimpleNamespace(**row), self._args)) as slide:
                tissue, _ = find_tissue(slide.glance(), self._args.tissue, self._args.exclude_pen)
                mm2 = slide.width * slide.height * (slide.mpp / 1000) ** 2
            return {"mm2": float(tissue.mean()) * mm2}
        except InputError as error:
            return {"failed": str(error)}

    def do(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Do a slide: `failed`, why it could not be done, or nothing."""
        try:
            self._work(SimpleNamespace(**row))
        except InputError as error:
            return {"failed": str(error)}
        return {}


def _by_ray(slides: pd.DataFrame, args: SlideScript) -> None:
    """Have the actors of a Ray cluster do the slides, and record what failed."""
    ray = _require_ray()
    rows = slides[[c for c in ("image_id", "path", "part", "mpp") if c in slides]].to_dict(
        "records"
    )
    run = Run(dataclasses.replace(args, shard="1/1", resume=True), lambda metrics: False)
    with (
        run.start(engine=f"ray {ray.__version__}", **task().record),
        cluster(ray, args.address, args.workers),
    ):
        pool = Pool(ray, *_actors(ray, args, run.home, len(rows)))
        checked, failures = pool.each("check", rows)
        mm2 = {name: answer["mm2"] for name, answer in checked.items()}
        rows = [row for row in rows if str(row["image_id"]) in mm2]
        rows.sort(key=lambda row: -mm2[str(row["image_id"])])
        done, failed = pool.each("do", rows, Progress(mm2))
        write_json(run.home / "failures.json", failures | failed)
        run.finish({"slides": len(done), "failed": sorted(failures | failed)})


def _require_ray() -> Any:
    # Read when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # an extra, and slow
    except ImportError as error:
        raise InputError(
            f"The package ray must be installed for --engine ray.\nReceived: {error}.\n"
            'Run pip install "bach-histology[ray]"; or use --workers, which needs no package.'
        ) from error
    return ray


@contextlib.contextmanager
def cluster(ray: Any, address: str | None, workers: int | None = None) -> Iterator[None]:
    """A cluster: the one at an address, or one on this machine that ends with the body.

    Args:
        ray: The module.
        address: Its address, or None.
        workers: How many actors there is to be room for at least, on this machine.

    Raises:
        InputError: If there is no cluster.
    """
    how: dict[str, Any] = {"address": address}
    if address is None:
        how = {"address": "local", "include_dashboard": False}
        how["num_cpus"] = max(_cores(), workers or 0)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        host, _, port = (address or "auto").rpartition(":")
        if port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host.rpartition("/")[2], int(port)), _CONNECT_S).close()
        ray.init(**how, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise InputError(
            f"There must be a Ray cluster to work with.\nReceived: --address={address}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
            "Start one with `ray start --head`, or leave out --address for one of this machine."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process at once
    try:
        yield
    finally:
        ray.shutdown()


def _actors(ray: Any, args: SlideScript, home: Path, most: int) -> tuple[Callable[[int], Any], int]:
    """What makes an actor of a cluster, by its number, and how many there are to be."""
    found = ray.cluster_resources()
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    gpu = found.get("GPU", 0) >= 1
    count = min(args.workers or int(found["GPU"] if gpu else sum(cpus)) or 1, most)
    # As many cores as each can have; more actors than there is room for wait for machines.
    cores = next((c for c in range(max(cpus), 1, -1) if sum(n // c for n in cpus) >= count), 1)
    own = {"engine": "plain", "workers": None, "address": None, "resume": False, "shard": None}
    words = options.words(args, **own)
    environment = _threads(cores)
    if "KERAS_BACKEND" in os.environ:
        environment["KERAS_BACKEND"] = os.environ["KERAS_BACKEND"]
    where = (str(ROOT), os.getcwd(), environment)

    class Actor:
        """Goes by value: where it arrives, our package is not found before `__init__`."""

        def __init__(self, root: str, folder: str, environment: dict, *worker: Any):
            import importlib
            import os
            import sys

            os.environ.update(environment)
            os.chdir(folder)
            sys.path.insert(0, root)
            self._worker = importlib.import_module("bach.engine").Worker(*worker)

        def ready(self):
            return self._worker.refused

        def check(self, row):
            return self._worker.check(row)

        def do(self, row):
            return self._worker.do(row)

    needs = {"num_gpus": 1, "num_cpus": 0} if gpu else {"num_cpus": cores}
    remote = ray.remote(Actor).options(**needs, max_restarts=_RESTARTS, max_task_retries=0)
    log.info("Ray: %d workers, each with %s", count, "a GPU" if gpu else f"{cores} CPU cores")
    files = (home.resolve() / f"worker_{k + 1}.log" for k in range(count))
    logs = list(map(str, files))
    return lambda k: remote.remote(*where, _script(args).stem, words, logs[k]), count


class Progress:
    """Says after each slide how fast it goes and how long it will take.

    Args:
        mm2: Tissue of every slide, about, by its name.
    """

    def __init__(self, mm2: Mapping[str, float]):
        self._mm2, self._start = mm2, time.monotonic()
        self._slides, self._area = 0, 0.0

    def tell(self, name: str) -> None:
        """A slide has been done."""
        self._slides, self._area = self._slides + 1, self._area + self._mm2[name]
        hours = max(time.monotonic() - self._start, 1e-3) / 3600
        total, left = sum(self._mm2.values()), len(self._mm2) - self._slides
        # By tissue, where there is any: the largest go first.
        share = self._area / total if total else self._slides / len(self._mm2)
        text = f"{name}: {self._slides} of {len(self._mm2)} slides"
        text += f", {self._slides / hours:,.0f} slides/h, {self._area / hours:,.0f} mm2/h"
        if left and share:
            text += f", {duration(3600 * hours * (1 / share - 1))} left"
        log.info("%s", text)


class Pool:
    """Actors, of which each has one slide at a time.

    Args:
        ray: The module.
        make: Starts an actor, by its number.
        count: How many.
    """

    def __init__(self, ray: Any, make: Callable[[int], Any], count: int):
        self._ray = ray
        self._free: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._lost: Exception = RuntimeError("no worker")
        for number in range(count):
            self._wait_for(make(number))

    def each(
        self, method: str, rows: Sequence[dict[str, Any]], progress: Progress | None = None
    ) -> tuple[dict[str, dict], dict[str, str]]:
        """Have a method called with every row, in their order.

        A row that ends its actor, or comes to an error that is no `InputError`, is tried again,
        after all others; the second time it has failed.

        Returns:
            What came of each row, and why the others failed, by their names.

        Raises:
            InputError: If the actors refuse to work.
        """
        todo, busy = collections.deque(rows), dict[Any, tuple[Any, dict]]()
        tried: collections.Counter[str] = collections.Counter()
        done: dict[str, dict] = {}
        failures: dict[str, str] = {}
        heard = time.monotonic()
        while todo or busy:
            if not busy and not self._free and not self._starting:
                raise self._lost
            while todo and self._free:
                actor, row = self._free.pop(), todo.popleft()
                busy[getattr(actor, method).remote(row)] = actor, row
            waiting = [*busy, *self._starting]
            ready = self._ray.wait(waiting, num_returns=1, timeout=_LOOK_S)[0]
            if ready or busy:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENT_S:
                heard = time.monotonic()
                log.warning("no worker has started: the cluster has no room, or is starting")
            for answer in ready:
                if answer in self._starting:
                    self._start(answer)
                    continue
                actor, row = busy.pop(answer)
                name = str(row["image_id"])
                tried[name] += 1
                result, why = self._get(answer, actor)
                if why is not None and tried[name] < _TRIES:
                    log.warning("%s: tried again after %s", name, why.strip().splitlines()[-1])
                    todo.append(row)
                    continue
                why = why or result.get("failed")
                if why is not None:
                    failures[name] = why
                    log.error("%s failed: %s", name, why)
                else:
                    done[name] = result
                if progress is not None:
                    progress.tell(name)
        return done, failures

    def _get(self, answer: Any, actor: Any) -> tuple[dict, str | None]:
        """What an actor answered, or the traceback of why it did not; then it is free again."""
        errors = self._ray.exceptions
        try:
            result = self._ray.get(answer)
        except errors.RayTaskError as error:  # raised by the method: the actor lives
            self._free.append(actor)
            return {}, _COLOR.sub("", str(error))
        except errors.RayError as error:
            self._wait_for(actor)
            why = f"{type(error).__name__}: {error}".split("\n")[0]
            return {}, f"Its worker ended: no memory, or a library that crashed.\n{why}"
        self._free.append(actor)
        return result, None

    def _wait_for(self, actor: Any) -> None:
        """Ask an actor whether it is there, which it answers once it has (re)started."""
        self._starting[actor.ready.options(max_task_retries=-1).remote()] = actor

    def _start(self, answer: Any) -> None:
        """Take what an actor said when it started."""
        actor, errors = self._starting.pop(answer), self._ray.exceptions
        try:
            refused = self._ray.get(answer)
        except errors.ActorUnavailableError:
            time.sleep(_LOOK_S)
            self._wait_for(actor)
            return
        except errors.RayError as error:  # it will not come again
            log.error("a worker is lost: %s", error)
            self._lost = error
            return
        if refused is not None:
            raise InputError(refused)
        self._free.append(actor)
