"""Writes what a study or a search shows: its conclusions, its caveats, and the files of `page`."""

import argparse
from collections.abc import Iterable, Sequence

from efficientnet_tf.scaling.compound import PAPER
from efficientnet_tf.study.coefficients import Candidate, Score, summarize_ranking
from efficientnet_tf.study.columns import Point, average_seeds, count_overlaps
from efficientnet_tf.study.designs import Study
from efficientnet_tf.study.page import StudyInfo, write_page
from efficientnet_tf.study.results import Row


def write_report(
    study: Study,
    rows: Sequence[Row],
    output_dir: str,
    *,
    recipe: str,
    resolution: int,
    seeds: int,
    command: str,
    failed: Sequence[str] = (),
    shares_plotly: bool = False,
) -> str:
    """Write results.csv, the plots and index.html of a study from its finished runs.

    Args:
        study: The study.
        rows: Rows of `read_rows`, with "inference_seconds".
        output_dir: A local folder that exists.
        recipe: Name or path of the recipe.
        resolution: Image side of the base network in pixels.
        seeds: Number of runs of each network.
        command: Command that repeats the study.
        failed: Names of failed runs.
        shares_plotly: Whether the page loads plotly from the folder above it, see `write_page`.

    Returns:
        The path of index.html.
    """
    points = average_seeds(rows)
    lines = study.make_lines(points)
    caveats = [*study.caveats, *list_caveats(points, recipe, resolution, seeds)]
    if failed:
        caveats.append(f"These runs failed: {', '.join(failed)}.")
    info = StudyInfo(
        study.title,
        study.summary,
        caveats=tuple(caveats),
        command=command,
        planned_runs=len(study.networks) * seeds,
        conclusions=tuple(study.find_conclusions(lines)),
        point_label=study.point_label,
        is_joined=study.is_joined,
    )
    return write_page(output_dir, info, rows, lines, study.plots, shares_plotly)


def write_search_report(
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    scores: Sequence[Score],
    output_dir: str,
    *,
    recipe: str,
    seeds: int,
    command: str,
    shares_plotly: bool = False,
) -> str:
    """Write results.csv, a plot and index.html of a search for coefficients.

    Args:
        candidates: The networks of the search.
        rows: Rows of `read_rows`, with "inference_seconds".
        scores: Scores of `rank`.
        output_dir: A local folder that exists.
        recipe: Name or path of the recipe.
        seeds: Number of runs of each network.
        command: Command that repeats the search.
        shares_plotly: Whether the page loads plotly from the folder above it, see `write_page`.

    Returns:
        The path of index.html.
    """
    points, baseline = average_seeds(rows), candidates[0].baseline
    of_paper = {candidate.name for candidate in candidates if PAPER in candidate.specs}
    name = f"alpha {PAPER.alpha:g}, beta {PAPER.beta:g}, gamma {PAPER.gamma:g}, as in the paper"
    lines = {"grid": [point for point in points if point["network"] not in of_paper]}
    lines |= {name: [point for point in points if point["network"] in of_paper]} if of_paper else {}
    info = StudyInfo(
        "Scaling coefficients",
        f"{baseline.name} scaled by points of the grid with alpha * beta^2 * gamma^2 near 2. Because of rounding, the "
        "networks do not have exactly the same multiply-adds.",
        caveats=tuple(list_caveats(points, recipe, baseline.resolution, seeds)),
        command=command,
        planned_runs=len(candidates) * seeds,
        conclusions=(summarize_ranking(scores, seeds),),
        point_label="network",
        is_joined=False,
    )
    return write_page(output_dir, info, rows, lines, ("macs",), shares_plotly)


def add_page_argument(parser: argparse._ActionsContainer) -> None:
    """Add the flag of `shares_plotly`."""
    parser.add_argument(
        "--share_plotly",
        action="store_true",
        help="Let the page load plotly.min.js from the folder above --output_dir, and write it there. Several pages "
        "then share this file of 5 MB. Without this flag, index.html is one file that contains everything.",
    )


def list_caveats(points: Sequence[Point], recipe: str, resolution: int, seeds: int) -> Iterable[str]:
    """Yield sentences that say what the results of any study do not show.

    Args:
        points: Points of `average_seeds`.
        recipe: Name or path of the recipe.
        resolution: Image side of the base network in pixels.
        seeds: Number of runs of each network.
    """
    yield (
        f"The networks were trained from random weights with the recipe {recipe}, starting at {resolution} pixels. "
        "Compare the order of the networks and the shapes of the curves with the paper, but not the accuracies."
    )
    overlaps = count_overlaps(points)
    if seeds == 1:
        yield "There is one seed for each network, so it is unknown how much of a difference is chance."
    elif overlaps and overlaps[0]:
        yield (
            f"For {overlaps[0]} of {overlaps[1]} pairs of networks, the accuracies (mean ± standard deviation) "
            "overlap. It is not established which of the two is better."
        )
    yield (
        "Feature maps of a few pixels are rounded up, so multiply-adds grow in steps. Times depend on the machine of "
        "each run and on what else ran there."
    )
