"""The learning curves of a run as a picture: one panel a quantity, policy steps on the horizontal axis."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from asearch.errors import ConfigError

if TYPE_CHECKING:
    from asearch.evaluation.report import RunReport

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8a8a"
DOTS_PER_INCH = 130


def draw(report: "RunReport", path: Path) -> None:
    """Write a PNG of the curves to `path`. Raises ConfigError if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: install the extra `asearch[plot]`") from error
    figure: Any = Figure(figsize=(11, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, 3)
    points = report.curve()
    started = report.started
    figure.suptitle(f"{started.run}: recipe {started.recipe}, seed {started.seed}" if started else "run")
    _line(axes[0][0], points, "reward", "mean reward of training episodes", BLUE)
    axes[0][0].set_ylabel("reward")
    _accuracy(axes[0][1], report, points)
    _line(axes[0][2], points, "searches_per_episode", "tool calls of training episodes", BLUE, label="searches")
    axes[0][2].set_ylabel("calls per episode")
    _line(axes[0][2], points, "reads_per_episode", "", ORANGE, label="pages read")
    axes[0][2].legend(frameon=False)
    _staleness(axes[1][0], report)
    _line(axes[1][1], points, "staleness_mean", "staleness of trained tokens", BLUE, label="mean")
    axes[1][1].set_ylabel("policy steps")
    _line(axes[1][1], points, "staleness_max", "", ORANGE, label="max")
    if report.rule != "keep":
        axes[1][1].axhline(report.eta, color=GREY, linestyle=":", label=f"bound η = {report.eta}")
    axes[1][1].legend(frameon=False)
    _idle(axes[1][2], report, points)
    for row in axes:
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]) if axis is axes[0][0] else 0.0)
            axis.xaxis.get_major_locator().set_params(integer=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _line(axis: Any, points: list[dict[str, object]], name: str, title: str, colour: str, label: str = "") -> None:
    known = [(cast("int", point["step"]), cast("float", point[name])) for point in points if point[name] is not None]
    axis.plot([step for step, _ in known], [value for _, value in known], color=colour, label=label or None, marker=".")
    axis.set_xlabel("policy step")
    if title:
        axis.set_title(title, fontsize=10)


def _accuracy(axis: Any, report: "RunReport", points: list[dict[str, object]]) -> None:
    _line(axis, points, "accuracy", "share of correct answers", GREY, label="training episodes (sampled)")
    last = max((cast("int", point["step"]) for point in points), default=0) + 1
    for label, at, colour in (("before", 0, ORANGE), ("after", last, BLUE)):
        found = report.evaluation(label)
        accuracy, interval = cast("float | None", found["accuracy"]), cast("list[float] | None", found["ci95"])
        if accuracy is None or interval is None:
            continue
        error = [[accuracy - interval[0]], [interval[1] - accuracy]]
        text = f"held out, greedy, {label}: {accuracy:.2f}"
        axis.errorbar([at], [accuracy], yerr=error, fmt="o", color=colour, capsize=4, label=text)
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("accuracy")
    axis.legend(frameon=False, fontsize=8)


def _staleness(axis: Any, report: "RunReport") -> None:
    histogram = report.journal.staleness()
    axis.bar(sorted(histogram), [histogram[age] for age in sorted(histogram)], color=BLUE)
    axis.set_title("trained tokens by staleness", fontsize=10)
    axis.set_xlabel("staleness (policy steps)")
    axis.set_ylabel("tokens")


def _idle(axis: Any, report: "RunReport", points: list[dict[str, object]]) -> None:
    steps = [cast("int", point["step"]) for point in points]
    idle = [cast("float", point["idle_s"]) for point in points]
    other = [cast("float", point["span_s"]) - cast("float", point["idle_s"]) for point in points]
    axis.bar(steps, other, color=BLUE, label="updates, publishes, checkpoints")
    axis.bar(steps, idle, bottom=other, color=ORANGE, label="waits for a batch")
    fraction = report.journal.idle_fraction()
    axis.set_title("trainer's time" + ("" if fraction is None else f": idle {fraction:.0%}"), fontsize=10)
    axis.set_xlabel("policy step")
    axis.set_ylabel("seconds")
    axis.margins(y=0.35)
    axis.legend(frameon=False, fontsize=8)
