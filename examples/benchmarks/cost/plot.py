"""The plot of step_cost.py."""

import statistics
from pathlib import Path

from cost.report import Row, growth, quartiles, series

# Okabe and Ito's colours, which colour-blind readers can tell apart. The markers differ as well.
STYLES = (
    ("#D55E00", "s"),
    ("#0072B2", "o"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Draw time and memory of a step against the batch size, on logarithmic axes. The legend tells the growth.

    Args:
        rows: measurements; rows of one name make a line.
        title: of the figure.
        path: PNG file to write; its folder is created.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for k, (name, of) in enumerate(series(rows).items()):
        color, marker = STYLES[k % len(STYLES)]
        style = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.8, "capsize": 3}
        exponent = growth(of)
        label = name if exponent is None else f"{name}: time ∝ B$^{{{exponent:.2f}}}$"
        timed = [(row.case.batch_size, statistics.median(row.step), quartiles(row.step)) for row in of if row.step]
        bars = [[m - (low or m) for _, m, (low, _) in timed], [(high or m) - m for _, m, (_, high) in timed]]
        time.errorbar([b for b, _, _ in timed], [m for _, m, _ in timed], bars, label=label, **style)
        held = [(row.case.batch_size, row.peak_bytes / 1e9) for row in of if row.peak_bytes]
        memory.errorbar([b for b, _ in held], [gb for _, gb in held], **style)
    for panel, quantity in ((time, "Time of a loss step, s (quartiles)"), (memory, "Peak memory of a loss step, GB")):
        panel.set(title=quantity)
        if not any(len(line.get_xdata()) for line in panel.lines):
            panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center")
            continue  # an axis without data cannot be logarithmic
        panel.set(xscale="log", yscale="log", xlabel="Batch size B")
        panel.xaxis.set(
            major_locator=FixedLocator(sorted({row.case.batch_size for row in rows})),
            minor_locator=NullLocator(),
            major_formatter="{x:.0f}",
        )
        panel.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
        panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
