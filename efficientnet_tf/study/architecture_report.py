"""Writes what a search for a baseline found: search.csv, pareto.png, and the best network as baseline.yaml."""

import os
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.load import dump_variant
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.tables import format_csv
from efficientnet_tf.runtime.terminal import make_table
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.study.mnasnet_space import Space
from efficientnet_tf.study.sampling import MOST_TIMES, Settings, Trial, is_affordable
from efficientnet_tf.visualization.figures import add_legend, legible, save_figure
from efficientnet_tf.visualization.scatter import name_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

FILES = ("search.csv", "pareto.png", "baseline.yaml")
LISTED_SAMPLES, COUNTED_SAMPLES = 10, 200  # of `describe_space`
SHOWN_TRIALS = 10  # in the table of the best


def find_best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest objective among those that were trained to their end, or None."""
    done = [trial for trial in trials if trial.state == "done"]
    return max(done, key=lambda trial: trial.objective or 0.0) if done else None


def find_pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other one beats in accuracy with as few multiply-adds, from the smallest on.

    Args:
        trials: Trials that were trained to their end.
    """
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.macs, -(trial.top1 or 0.0))):
        if not front or (trial.top1 or 0.0) > (front[-1].top1 or 0.0):
            front.append(trial)
    return front


def describe_space(space: Space, settings: Settings) -> "tuple[str | Table, ...]":
    """Return texts and tables on the space: its options, its size, and the costs of random samples.

    Args:
        space: The space.
        settings: The settings of the search.
    """
    rng = random.Random(settings.seed)
    specs = [space.build(space.sample(rng), f"sample{number}") for number in range(1, COUNTED_SAMPLES + 1)]
    costs = [count_cost(spec, classes=settings.classes) for spec in specs]
    baseline = count_cost(space.baseline, classes=settings.classes)
    named = [("baseline", space.baseline, baseline), *((s.name, s, c) for s, c in zip(specs, costs, strict=True))]
    rows = [
        [
            *(name, f"{cost.macs / 1e6:.3f}", f"{cost.macs / settings.target_macs:.2f}x", f"{cost.params / 1e6:.3f}"),
            " ".join(_describe_stage(stage) for stage in spec.stages),
        ]
        for name, spec, cost in named[: LISTED_SAMPLES + 1]
    ]
    affordable = sum(is_affordable(spec, settings) for spec in specs)
    macs = [cost.macs / 1e6 for cost in costs]
    return (
        space.make_table(),
        f"Combinations: {space.combinations:.3g}, different stage tables: {space.stage_tables:.3g}. Only mbconv has "
        "squeeze-and-excitation, and separable has no expansion.",
        make_table(["network", "MACs (M)", "of target", "params (M)", "stages"], rows, left=(0, 4)),
        f"Of {COUNTED_SAMPLES} random networks, {affordable} have at most {MOST_TIMES:g} times the target of "
        f"{settings.target_macs / 1e6:.3f} million multiply-adds. Only such networks are trained. The median is "
        f"{statistics.median(macs):.3f} million. Costs are for {settings.classes:,} classes.",
    )


def _describe_stage(stage: Any) -> str:
    """Return a short text such as "mbconv:k3e6c24x2se" for a row of a stage table."""
    return (
        f"{stage.block}:k{stage.kernel}e{stage.expand}c{stage.channels}x{stage.repeats}{'se' if stage.se_ratio else ''}"
    )


def make_ranking(trials: Sequence[Trial]) -> "Table":
    """Return a table of the best trials and the baseline."""
    done = sorted((t for t in trials if t.state == "done"), key=lambda trial: -(trial.objective or 0.0))
    rows = [
        [
            *(f"{place}", trial.name, f"{trial.objective:.4f}", f"{trial.top1:.2%}"),
            *(f"{trial.macs / 1e6:.3f}", f"{trial.params / 1e6:.3f}", trial.sampler),
        ]
        for place, trial in enumerate(done, 1)
        if place <= SHOWN_TRIALS or trial.sampler == "baseline"
    ]
    return make_table(["", "network", "objective", "top-1", "MACs (M)", "params (M)", "chosen by"], rows, left=(1, 6))


def summarize(trials: Sequence[Trial], settings: Settings) -> str:
    """Return sentences on how many networks there are in each state, and how certain the result is."""
    counts = Counter(trial.state for trial in trials)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    total = max(len(trials), settings.trials)
    text = (
        f"Networks: {len(trials)} of {total} ({states}). Each was trained once, so small differences may be "
        "chance. Train the best ones with more seeds before you rely on their order."
    )
    failed = [trial.name for trial in trials if trial.state in ("failed", "damaged")]
    return f"{text} Failed: {', '.join(failed)}." if failed else text


def write_results(output_dir: str, space: Space, trials: Sequence[Trial], settings: Settings) -> None:
    """Write search.csv, pareto.png and baseline.yaml. Existing files are replaced.

    Args:
        output_dir: A local folder that exists.
        space: The search space.
        trials: All trials, at least one of which was trained to its end.
        settings: The settings of the search.
    """
    rows = [_make_row(trial, space) for trial in trials]
    write_text(os.path.join(output_dir, FILES[0]), format_csv(list(rows[0]), rows))
    save_figure(draw_front(trials, settings), os.path.join(output_dir, FILES[1]), "output", dpi=150)
    best = find_best(trials)
    if best is not None:
        comment = (
            f"# {best.name} of a search from {escape(space.baseline.name)}: top-1 {best.top1:.2%}, objective "
            f"{best.objective:.4f}, {best.macs:,} multiply-adds, {best.params:,} parameters.\n"
        )
        write_text(os.path.join(output_dir, FILES[2]), comment + dump_variant(best.spec))


def _make_row(trial: Trial, space: Space) -> dict[str, Any]:
    return {
        **{"trial": trial.name, "state": trial.state, "objective": trial.objective, "top1": trial.top1},
        **{"macs": trial.macs, "params": trial.params, "step": max(trial.values, default=None)},
        **{"sampler": trial.sampler, **{key: trial.choices[key] for key in space.options}},
    }


def draw_front(trials: Sequence[Trial], settings: Settings) -> "Figure":
    """Plot the accuracy over the multiply-adds, with the Pareto front, the baseline and the best network.

    Networks that were stopped early are left out, because their accuracy is that of a part of the run.

    Args:
        trials: The trials.
        settings: The settings of the search.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    done, best = [trial for trial in trials if trial.state == "done"], find_best(trials)
    handles, labels = [], []

    def add(label: str, members: Sequence[Trial], **style: Any) -> None:
        if members:
            places = [t.macs / 1e6 for t in members], [(t.top1 or 0.0) * 100 for t in members]
            handles.append(axes.plot(*places, **style)[0])
            labels.append(label)

    add("networks", done, marker="o", linestyle="none", color="#9aa5b1", markersize=5)
    front = find_pareto_front(done)
    add("Pareto front", front, marker="o", drawstyle="steps-post", color="#3b82c4", markersize=5)
    add("baseline", [t for t in done if t.sampler == "baseline"], marker="s", linestyle="none", color="black")
    if best is not None:
        add("best", [best], marker="*", linestyle="none", color="#d9692b", markersize=14)
        span = [trial.macs for trial in done] + [settings.target_macs]
        macs = np.geomspace(min(span), max(span))
        accuracies = [100 * (best.objective or 0.0) / settings.rate(1.0, count) for count in macs]
        handles += axes.plot(macs / 1e6, accuracies, color="#d9692b", linestyle=":", linewidth=1)
        labels.append("same objective as the best")
    handles.append(axes.axvline(settings.target_macs / 1e6, color="gray", linestyle="--", linewidth=0.8))
    labels.append("target")
    axes.set_xlabel("multiply-adds (M)")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(legible(f"Search for a baseline: {len(done)} networks"), fontsize=11)
    axes.grid(alpha=0.3)
    add_legend(axes, handles, labels, fontsize=8)
    named = [best, *front] if best is not None else front
    unique = {trial.name: trial for trial in named}.values()
    others = [(t.macs / 1e6, (t.top1 or 0.0) * 100) for t in done if t.name not in {u.name for u in unique}]
    name_points(axes, [(t.name, (t.macs / 1e6, (t.top1 or 0.0) * 100), "black") for t in unique], others)
    return figure
