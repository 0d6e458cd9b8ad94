"""Maps of many machines as one Arrow table, by `dask.distributed` with a worker on each of them."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import numpy.typing as npt

from fastmap.arrow.writer import pyarrow
from fastmap.dtypes import Reduce, Where
from fastmap.maptypes.open import open as open_map

#: What the workers can reduce rows of one group by.
AGGREGATES = ("sum", "min", "max", "count")
#: Seconds between two looks at which workers are still there.
LOOK = 0.5


@dataclass(frozen=True)
class Failure:
    """A host whose map is not in the table.

    Attributes
    ----------
    host : str
        As the column would have it.
    worker : str
        The address of its worker.
    reason : str
        One line.
    error : Exception or None
        What was raised there; None where nothing came back.
    """

    host: str
    worker: str
    reason: str
    error: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.host}: {self.reason}"


@dataclass(frozen=True)
class Snapshot:
    """What `snapshot` returns.

    Attributes
    ----------
    table : pyarrow.Table
        The rows of all hosts that answered, in order of their names; the first column is the host.
    failures : tuple of Failure
        The hosts that are not in it, and why; in order of their names.
    partial : tuple of str
        The hosts whose read may lack an entry, or have one twice (their `Batch` was not
        ``complete``).
    """

    table: Any
    failures: tuple[Failure, ...]
    partial: tuple[str, ...]


def snapshot(
    client: Any, *, name: str | None = None, path: str | os.PathLike[str] | None = None,
    key: npt.DTypeLike | None = None, value: npt.DTypeLike | None = None, reduce: Reduce = None,
    fields: Sequence[str] | None = None, where: Where = None,
    annotations: Mapping[str, Any] | None = None, group_by: Sequence[str] | None = None,
    aggregate: Mapping[str, str] | None = None, workers: Iterable[str] | None = None,
    host_column: str = "host", timeout: float = 30.0,
) -> Any:
    """Read one map on every host of a fleet.

    Parameters
    ----------
    client : distributed.Client
        Of a scheduler whose workers run one a host, where fastmap is installed and may read the
        map: ``dask worker SCHEDULER --name $(hostname) --nthreads 1``. A host is called by the
        name of its worker; one without a name by its address, and of several of those at one
        address the first is asked.
    name, path : str, path
        The map, as `fastmap.open` takes it; one of the two.
    key, value : dtype_like, optional
        As `fastmap.open` takes them.
    reduce, fields, where
        As `HashMap.snapshot` takes them: what is dropped never leaves the host.
    annotations : mapping, optional
        As `Batch.to_arrow` takes it.
    group_by : sequence of str, optional
        Columns of the table. Each host reduces its rows to one for each value of these, before
        anything is sent. An empty sequence makes one row of all.
    aggregate : mapping of str to str
        With `group_by`: the columns to keep, and how: "sum", "min", "max", "count". Integers that
        are summed become 64 bits wide.
    workers : iterable of str, optional
        Only these, by name or address.
    host_column : str
        What the column is called.
    timeout : float
        Seconds for the whole call. Hosts that have not answered then are failures.

    Returns
    -------
    Snapshot
        Also where hosts failed: one that has no such map, that may not read it, whose worker was
        lost in the middle or did not answer, is named in its ``.failures``. Where its columns are
        not those of most hosts, too. (A coroutine, of an asynchronous client.)

    Raises
    ------
    TypeError, ValueError
        An argument does not fit, or there is no such worker; no host was asked.
    OSError
        The scheduler is not there.
    ImportError
        distributed or pyarrow is not there.
    """
    _imported()
    if (name is None) == (path is None):
        raise TypeError("snapshot takes a name= or a path= of the map")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds, not {timeout!r}")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout}: more than 0 seconds")
    if isinstance(workers, str):
        raise TypeError(f"workers is a list of names or addresses, not {workers!r}")
    request = _Request(
        {"path": path, "name": name, "key": key, "value": value},
        {"reduce": reduce, "fields": fields, "where": where}, annotations,
        *_grouping(group_by, aggregate))
    if not hasattr(client, "scheduler") or not hasattr(client, "submit"):
        raise TypeError(f"client is a distributed.Client, not {client!r}")
    return client.sync(_asked, client, request, None if workers is None else list(workers),
                       host_column, float(timeout))


@dataclass(frozen=True)
class _Request:
    """What a worker is asked for."""

    source: dict[str, Any]
    read: dict[str, Any]
    annotations: Mapping[str, Any] | None
    group_by: list[str] | None
    aggregate: dict[str, str]


def _grouping(
    group_by: Sequence[str] | None, aggregate: Mapping[str, str] | None
) -> tuple[list[str] | None, dict[str, str]]:
    if group_by is None:
        if aggregate is not None:
            raise TypeError("aggregate= goes with group_by=")
        return None, {}
    if isinstance(group_by, str):
        raise TypeError(f"group_by is a list of columns, not {group_by!r}")
    if not isinstance(aggregate, Mapping) or not aggregate:
        raise TypeError("group_by= goes with aggregate=, such as {'bytes': 'sum'}")
    for column, how in aggregate.items():
        if how not in AGGREGATES:
            raise ValueError(f"aggregate {column!r} by {how!r}: one of {', '.join(AGGREGATES)}")
        if column in group_by:
            raise ValueError(f"{column!r} is in group_by and in aggregate")
    return list(group_by), dict(aggregate)


def _imported() -> None:
    try:
        import distributed  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError("a fleet needs distributed and pyarrow: pip install 'fastmap-bpf[fleet]' "
                          f"({error})", name=error.name) from None


def _answered(request: _Request) -> tuple[Any, bool] | Exception:
    """Run `_read`; return what it raises, which dask would log with a traceback on every host."""
    try:
        return _read(request)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error.with_traceback(None)


def _read(request: _Request) -> tuple[Any, bool]:
    """Read the map of this host: what a worker runs. Return a table, and whether it is complete."""
    with open_map(**request.source) as m:
        batch = m.snapshot(**{what: given for what, given in request.read.items()
                              if given is not None})
        rows = batch.to_arrow(annotations=request.annotations)
    table = pyarrow().Table.from_batches([rows])
    if request.group_by is not None:
        missing = {*request.group_by, *request.aggregate} - {*table.column_names}
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}; there are: "
                             f"{', '.join(table.column_names)}")
        made = table.group_by(request.group_by, use_threads=False).aggregate(
            list(request.aggregate.items()))
        chosen = [*request.group_by, *(f"{c}_{how}" for c, how in request.aggregate.items())]
        table = made.select(chosen).rename_columns([*request.group_by, *request.aggregate])
    return table, batch.complete


async def _identity(client: Any, seconds: float) -> dict[str, Any]:
    """Ask the scheduler for all of its workers: ``{address: what it knows}``."""
    all_of_them = ({"n_workers": -1}
                   if "n_workers" in inspect.signature(client.scheduler_info).parameters else {})
    known = await asyncio.wait_for(client.scheduler.identity(**all_of_them), seconds)
    workers: dict[str, Any] = known["workers"]
    return workers


def _hosts(known: Mapping[str, Any], wanted: list[str] | None) -> dict[str, str]:
    """Return the worker of each host, by the host's name."""
    hosts: dict[str, str] = {}
    found = set()
    for address in sorted(known):
        name = known[address].get("name")
        name = address if name is None or name == "" else str(name)  # dask's own count from 0
        host = name if name != address else urlsplit(address).hostname or address
        if wanted is not None:
            words = {host, address} & set(wanted)
            if not words:
                continue
            found |= words
        hosts.setdefault(host, address)
    if missing := sorted(set(wanted or ()) - found):
        raise ValueError(f"no worker {', '.join(missing)}; there are: "
                         f"{', '.join(_hosts(known, None)) or 'none'}")
    if not hosts:
        raise ValueError("the scheduler has no workers")
    return dict(sorted(hosts.items()))


async def _asked(client: Any, request: _Request, wanted: list[str] | None, host_column: str,
                 timeout: float) -> Snapshot:
    deadline = monotonic() + timeout
    hosts = _hosts(await _identity(client, timeout), wanted)
    futures = {host: client.submit(_answered, request, workers=[address], pure=False, retries=0,
                                   allow_other_workers=False, key=f"fastmap-{os.urandom(8).hex()}")
               for host, address in hosts.items()}
    answers = {asyncio.ensure_future(_answer(future)): host for host, future in futures.items()}
    pending = set(answers)
    reasons: dict[str, str] = {}
    try:
        while pending and (left := deadline - monotonic()) > 0:
            _, pending = await asyncio.wait(pending, timeout=min(left, LOOK),
                                            return_when=asyncio.FIRST_COMPLETED)
            if not pending or (left := deadline - monotonic()) <= 0:
                break
            there = await _identity(client, left)
            for task in list(pending):
                if not task.done() and hosts[answers[task]] not in there:
                    reasons[answers[task]] = "its worker was lost"
                    pending.discard(task)
    except (OSError, TimeoutError) as error:  # what has come is kept
        reasons.update((answers[task], f"the scheduler does not answer: {error!r}")
                       for task in pending if answers[task] not in reasons)
    finally:
        for task, host in answers.items():
            if task.cancelled():  # by no one here
                reasons.setdefault(host, "the scheduler gave it up, or was lost")
            task.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        with suppress(OSError, TimeoutError):  # the scheduler is gone, and its tasks with it
            await asyncio.wait_for(
                client.cancel(list(futures.values()), asynchronous=True, force=True), LOOK)
    got: dict[str, tuple[Any, bool]] = {}
    failures = {}
    for task, host in answers.items():
        raised = None if task.cancelled() else task.exception()
        if task.cancelled() or raised is not None:
            late = f"no answer within {timeout:g} s"
            reason = reasons.get(host, late)
            if raised is not None:
                reason = " ".join(f"{type(raised).__name__}: {raised}".split())
            failures[host] = Failure(host, hosts[host], reason, raised)
        else:
            got[host] = task.result()
    return _joined(got, failures, hosts, host_column)


async def _answer(future: Any) -> tuple[Any, bool]:
    answer: tuple[Any, bool] | Exception = await future
    if isinstance(answer, Exception):
        raise answer
    return answer


def _joined(got: Mapping[str, tuple[Any, bool]], failures: dict[str, Failure],
            hosts: Mapping[str, str], host_column: str) -> Snapshot:
    """Return the answers as one table; those whose columns are not those of most are failures."""
    pa = pyarrow()
    common = Counter(table.schema for table, _ in got.values()).most_common(1)
    schema = common[0][0] if common else pa.schema([])
    if host_column in schema.names:
        raise ValueError(f"the map has a column {host_column!r} itself: give host_column= another "
                         "name")
    tables, partial = [], []
    for host, (table, complete) in got.items():
        if table.schema != schema:
            said = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
            failures[host] = Failure(host, hosts[host], f"other columns than most hosts: {said}")
            continue
        names = pa.repeat(pa.scalar(host, pa.string()), len(table))
        tables.append(table.add_column(0, host_column, names))
        if not complete:
            partial.append(host)
    whole = pa.schema([(host_column, pa.string()), *schema])
    table = pa.concat_tables(tables).unify_dictionaries() if tables else whole.empty_table()
    return Snapshot(table, tuple(failures[host] for host in sorted(failures)), tuple(partial))
