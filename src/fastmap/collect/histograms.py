"""Histograms that programs keep, as they are made: slots of counts. See `collect`."""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

from fastmap.collect.groups import Columns, column, names_of, number, packed, summable
from fastmap.maptypes.batch import Array, Batch

#: How a slot's number tells the largest value that is counted in it, before the multiplier.
TYPES = ("exp2", "exp2zero", "linear")
#: More buckets than that are a mistake: a slot is no value.
MOST_BUCKETS = 65536


class Histogram:
    """Histograms of the same buckets, one a row.

    Attributes
    ----------
    labels : ndarray
        ``(n,)``, structured: what tells the rows apart. Without fields where there are no labels,
        and the one row is the histogram.
    bounds : ndarray of f8
        ``(b,)``: the largest value that each bucket counts, Prometheus's ``le``.
    counts : ndarray of u8
        ``(n, b)``: how many values fell into each bucket, not added up.
    beyond : ndarray of u8
        ``(n,)``: how many were larger than the last bound: what ``le="+Inf"`` has more.
    sums : ndarray of f8, or None
        ``(n,)``: the sum of the values, where the program keeps it.
    """

    __slots__ = ("beyond", "bounds", "counts", "labels", "sums")

    def __init__(self, labels: Array, bounds: Array, counts: Array, beyond: Array,
                 sums: Array | None) -> None:
        self.labels = labels
        self.bounds = bounds
        self.counts = counts
        self.beyond = beyond
        self.sums = sums

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (f"<fastmap.Histogram of {len(self)} by {self.labels.dtype.names or 'nothing'}: "
                f"{len(self.bounds)} buckets, {int(self.total.sum())} values>")

    @property
    def total(self) -> Array:
        """How many values each row counted, ``(n,)`` of u8: Prometheus's ``_count``."""
        total: Array = self.counts.sum(axis=1, dtype="u8") + self.beyond
        return total

    @property
    def cumulative(self) -> Array:
        """The counts as Prometheus wants them: ``(n, b)``, each with all before it added."""
        cumulative: Array = np.cumsum(self.counts, axis=1, dtype="u8")
        return cumulative

    def merged(self) -> Histogram:
        """Return the one histogram of all rows."""
        return Histogram(np.zeros(1, []), self.bounds, self.counts.sum(0, "u8", keepdims=True),
                         self.beyond.sum(0, "u8", keepdims=True),
                         None if self.sums is None else self.sums.sum(0, keepdims=True))

    def quantile(self, q: npt.ArrayLike) -> Array:
        """Estimate the value below which the part `q` of the values lies.

        Within a bucket values are taken to be spread evenly, from its lower bound (that of the
        first is 0) to its upper one, as Prometheus's ``histogram_quantile`` does. What lies beyond
        the last bound is given as that bound. So the error is at most a bucket's width: for
        "exp2", a factor of 2.

        Parameters
        ----------
        q : float or array_like
            Within 0 and 1.

        Returns
        -------
        ndarray of f8
            ``(n,)``, or ``(n, len(q))``; NaN where a row has no values.

        Raises
        ------
        ValueError
            `q` is not within 0 and 1.
        """
        asked = np.asarray(q, "f8")
        if asked.ndim > 1 or not ((asked >= 0) & (asked <= 1)).all():
            raise ValueError(f"q={q!r}: one or more numbers from 0 to 1")
        cumulative = self.cumulative.astype("f8")
        total = self.total.astype("f8")
        lower = np.concatenate(([min(0.0, float(self.bounds[0]))], self.bounds[:-1]))
        found = np.full((len(self), asked.size), np.nan)
        rows = np.arange(len(self))
        for i, part in enumerate(asked.reshape(-1)):
            rank = part * total
            # The first bucket that reaches the rank, and has values.
            reached = (cumulative >= rank[:, None]) & (self.counts > 0)
            at = reached.argmax(axis=1)
            count = np.maximum(self.counts[rows, at].astype("f8"), 1)
            within = (rank - (cumulative[rows, at] - count)) / count
            value = lower[at] + (self.bounds[at] - lower[at]) * np.clip(within, 0, 1)
            found[:, i] = np.where(reached.any(axis=1), value, self.bounds[-1])
        found[total == 0] = np.nan
        result: Array = found[:, 0] if asked.ndim == 0 else found
        return result


def histogram(batch: Batch, bucket: str | None = None, labels: Columns | None = None,
              value: str = "value", *, bucket_type: str = "exp2", bucket_min: int = 0,
              bucket_max: int | None = None, bucket_multiplier: float = 1.0,
              sum_slot: int | None = None,
              sum_multiplier: float | None = None) -> Histogram:
    """Make histograms of the slots that a program counts in; the words are ebpf_exporter's.

    Parameters
    ----------
    batch : Batch
        A read, or a `Delta`'s: then the histogram is of what happened in between.
    bucket : str, optional
        The column that has the slot's number, such as ``"key.slot"``; the last field of the key
        where it is not given, or the key itself. ``"index"``: the values are arrays, and a slot
        is a place in them.
    labels : str or sequence of str, optional
        The columns that tell histograms apart; the other fields of the key where they are not
        given (with ``bucket="index"``, the whole key).
    value : str
        The column that counts.
    bucket_type : {"exp2", "exp2zero", "linear"}
        Slot ``i`` counts values up to ``2**i``; or in "exp2zero" slot 0 counts zeros and slot
        ``i + 1`` values up to ``2**i``; or in "linear" values up to ``i``; each times the
        multiplier. A program that keeps ``floor(log2(x))`` counts values *from* ``2**i`` in slot
        ``i``: give it twice the multiplier.
    bucket_min, bucket_max : int
        The first and the last ``i``; the last is the largest there is where it is not given. What
        is counted below the first goes into the first, what is above the last beyond all bounds.
    bucket_multiplier : float
        From the slots' unit to that of the bounds: 1e-6 for microseconds in seconds.
    sum_slot : int, optional
        A slot that counts no values but has their sum, in the slots' unit: ebpf_exporter keeps it
        in ``bucket_max + 1``.
    sum_multiplier : float, optional
        From the unit of that sum to that of the bounds, where it is not `bucket_multiplier`: of
        ``floor(log2(x))`` slots, which take twice the multiplier, the sum takes it once.

    Returns
    -------
    Histogram

    Raises
    ------
    TypeError, ValueError
        There is no such column, or it has no integers; values of several CPUs: give ``reduce=``
        to the read; or the slots are more than 65,536.
    """
    if bucket_type not in TYPES:
        raise ValueError(f"bucket_type={bucket_type!r}: one of {', '.join(TYPES)}")
    counts = summable(column(batch, value), value)
    if counts.dtype.kind not in "iu":
        raise TypeError(f"{value} is no count, it is {counts.dtype}")
    fields = batch.keys.dtype.names
    if bucket is None:
        bucket = "key" if fields is None else f"key.{fields[-1]}"
    if labels is None:
        labels = ([] if fields is None else [f"key.{name}" for name in fields
                                             if f"key.{name}" != bucket])
        if fields is None and bucket != "key":
            labels = ["key"]
    rows = packed(batch, names_of(labels))
    numbers, firsts = number(rows)
    if bucket == "index":
        if counts.ndim != 2:
            raise ValueError(f"{value} has no array of slots: bucket='index' is for "
                             f"{counts.dtype} (n, slots), not {counts.shape}")
        slots = np.broadcast_to(np.arange(counts.shape[1]), counts.shape)
        numbers = np.broadcast_to(numbers[:, None], counts.shape)
    else:
        slots = summable(column(batch, bucket), bucket)
        if slots.dtype.kind not in "iu" or slots.ndim != 1:
            raise TypeError(f"{bucket} is no slot, it is {slots.dtype}")
        if counts.ndim != 1:
            raise ValueError(f"{value} has {counts.shape[1]} numbers a row: reduce= the read, or "
                             "say bucket='index' where they are slots")
    return _counted(rows[firsts] if len(firsts) else rows[:0], numbers, slots, counts, bucket_type,
                    bucket_min, bucket_max, bucket_multiplier, sum_slot,
                    bucket_multiplier if sum_multiplier is None else sum_multiplier)


def _counted(labels: Array, numbers: Array, slots: Array, counts: Array, kind: str, first: int,
             last: int | None, multiplier: float, sum_slot: int | None,
             sum_multiplier: float) -> Histogram:
    zero = int(kind == "exp2zero")  # how many buckets of zeros come first
    summed = slots == (-1 if sum_slot is None else operator.index(sum_slot))
    sums_in = numbers[summed], counts[summed]
    numbers, slots, counts = numbers[~summed], slots[~summed], counts[~summed]
    if slots.dtype == "u8":  # beyond 63 bits is beyond any bucket: so that it fits with a sign
        slots = np.minimum(slots, np.uint64(1 << 62))
    slots = slots.astype("i8")
    first = operator.index(first)
    last = max(int(slots.max(initial=0)) - zero, first) if last is None else operator.index(last)
    if not first <= last < first + MOST_BUCKETS:
        raise ValueError(f"buckets from {first} to {last}: at least one, at most {MOST_BUCKETS}")
    exponents = np.arange(first, last + 1, dtype="f8")
    bounds = multiplier * np.concatenate(
        (np.zeros(zero), exponents if kind == "linear" else np.exp2(exponents)))
    at = zero + np.clip(slots - zero - first, 0, last - first + 1)
    if zero:
        at[slots == 0] = 0
    made = np.zeros((len(labels), len(bounds) + 1), "u8")
    np.add.at(made, (numbers, at), counts.astype("u8"))
    sums = None
    if sum_slot is not None:
        sums = np.zeros(len(labels), "f8")
        np.add.at(sums, sums_in[0], sums_in[1] * sum_multiplier)
    return Histogram(labels, bounds, made[:, :-1], made[:, -1], sums)
