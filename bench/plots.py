"""The report's pictures, as SVG, by matplotlib (the extra `bench`)."""

from __future__ import annotations

import io
from typing import Any

Info = dict[str, Any]

COLOURS = {"C, bpf(2)": "#555555", "C, libbpf": "#999999", "cilium/ebpf": "#00add8",
           "bcc": "#d62728", "ctypes by hand": "#9467bd", "bpfmaps": "#bcbd22",
           "bpftool": "#8c564b"}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("bench.report draws with matplotlib: pip install 'fastmap-bpf[bench]'") \
            from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastmap"  # the same figures make the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a tenth of the size
    import matplotlib.pyplot as plt

    return plt


def _plain(axis: Any) -> None:
    """Numbers as people write them, beside few of the ticks of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:.0e}")
    axis.set_minor_formatter(NullFormatter())


def _short(number: float) -> str:
    """A number as few characters: 4M, 16k."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:g}"


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    _pyplot().close(figure)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def ratios(infos: list[Info]) -> str:
    """How many times as fast as each library, question by question, on a logarithmic axis."""
    rows = [each for each in infos if "question" in each and "ratio" in each]
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(9, 0.27 * len(rows) + 1.5))
    at, ticks, last = 0.0, [], None
    for each in rows:
        ratio = each["ratio"]
        if each["question"] != last:
            at += 0.9
            axes.text(0.005, at - 0.55, each["question"], weight="bold", size=9,
                      transform=axes.get_yaxis_transform())
        last = each["question"]
        low, high = ratio["spread"]
        fast = 1 / ratio["ratio"]
        axes.barh(at, fast - 1, left=1, height=0.75, color=COLOURS.get(each["peer"], "#1f77b4"),
                  alpha=0.35 if low <= 1 <= high else 0.9)
        if low and high != float("inf"):
            axes.plot([1 / high, 1 / low], [at, at], color="black", linewidth=1)
        axes.text(max(fast, 1) * 1.05, at, f"{fast:.2f}", va="center", size=8)
        ticks.append((at, each["peer"]))
        at += 1
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks], size=8)
    axes.invert_yaxis()
    axes.set_xlabel("fastmap is so many times as fast (pale: the 95% interval crosses 1)")
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def curves(infos: list[Info]) -> str:
    """Nanoseconds an entry over each thing that grows."""
    found = [each["curve"] for each in infos if "curve" in each]
    plt = _pyplot()
    figure, axes = plt.subplots(2, -(-len(found) // 2), figsize=(15, 11), squeeze=False)
    for place in axes.flat[len(found):]:
        place.set_visible(False)
    for place, curve in zip(axes.flat, found, strict=False):
        for name, points in curve["series"].items():
            xs, medians, least = zip(*points, strict=True)
            line = place.plot(xs, medians, marker="o", markersize=3,
                              label=name, linestyle="--" if name.startswith("C,") else "-")
            place.fill_between(xs, least, medians, alpha=0.15, color=line[0].get_color())
        place.set_xscale("log")
        place.set_yscale("log")
        _plain(place.yaxis)
        xs = sorted({point[0] for points in curve["series"].values() for point in points})
        place.set_xticks(xs, [_short(x) for x in xs], rotation=45)
        place.set_xticks([], minor=True)
        place.set_xlabel(curve["over"])
        place.set_ylabel("ns an entry")
        place.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.28))
        place.grid(alpha=0.3)
    figure.tight_layout()
    return _svg(figure)


def latency(infos: list[Info]) -> str:
    """Percentiles of single calls."""
    found = next(each["latency"] for each in infos if "latency" in each)
    shares = ["1", "10", "25", "50", "75", "90", "99", "99.9", "max"]
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(9, 4.5))
    for name, marks in found.items():
        axes.plot(shares, marks, marker="o", markersize=3, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("percentile")
    axes.set_ylabel("ns a call")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _svg(figure)


def drawn(infos: list[Info]) -> dict[str, str]:
    """All pictures for which there are figures."""
    makers = {"ratios": (ratios, "question"), "curves": (curves, "curve"),
              "latency": (latency, "latency")}
    return {name: make(infos) for name, (make, key) in makers.items()
            if any(key in each for each in infos)}
