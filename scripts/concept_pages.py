"""Write what the concept pages of the documentation site generate from the source and from measurements, in Markdown.

`docs/site/hooks.py` calls these functions while the site is built. Imports no TensorFlow.
"""

import ast
import html
import json
import math
import re
from pathlib import Path

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import PAPER, scale_by_phi, solve_phi

ROOT = Path(__file__).resolve().parent.parent
FAMILY = [f"b{i}" for i in range(8)]
PHIS = [i / 4 for i in range(33)]  # of the figure
WIDTH, HEIGHT, MARGIN = 480, 280, 44  # of the figure


def format_deviations() -> str:
    """Return the list of all deviations from published code and papers that docstrings name."""
    items = []
    for path in sorted((ROOT / "efficientnet_tf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            text = ast.get_docstring(node) or ""
            found = re.search(r"^(Deviates.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
            source = re.search(r"^Source: (.+?)(?=\n\n|\nDeviates|\Z)", text, re.MULTILINE | re.DOTALL)
            if found:
                name = f"{path.parent.name}.{getattr(node, 'name', path.stem)}"
                follows = f" *Source:* {' '.join(source[1].split()).rstrip('.')}." if source else ""
                deviates = re.sub("^Deviates:?", r"*\g<0>*", " ".join(found[1].split()))
                items.append(f"- `{name}`.{follows} {deviates}")
    return "\n".join(items)


def format_phi() -> str:
    """Return the table of the compound coefficients that the published variants imply."""
    base, rows = load_variant("b0"), []
    for name in FAMILY:
        spec = load_variant(name)
        factors = (spec.depth / base.depth, spec.width / base.width, spec.resolution / base.resolution)
        bases = (PAPER.alpha, PAPER.beta, PAPER.gamma)
        phis = [f"{solve_phi(*pair):.2f}" for pair in zip(factors, bases, strict=True)]
        rows.append(f"| {name} | {spec.depth:g} | {spec.width:g} | {spec.resolution} | {' | '.join(phis)} |")
    titles = "| variant | depth | width | pixels | phi of the depth | phi of the width | phi of the pixels |"
    return "\n".join([titles, "|---|--:|--:|--:|--:|--:|--:|", *rows])


def format_memory() -> str:
    """Return the table of predicted and measured memory, from `docs/memory.json`."""
    report = json.loads((ROOT / "docs" / "memory.json").read_text(encoding="utf-8"))
    lines = ["| variant | pixels | batch | predicted | measured | error |", "|---|--:|--:|--:|--:|--:|"]
    for row in report["rows"]:
        predicted, measured = (f"{row[f'{name}_bytes'] / 2**30:.2f} GiB" for name in ("predicted", "measured"))
        cells = (row["variant"], row["size"], row["batch"], predicted, measured, f"{100 * row['error']:+.1f} %")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    environment = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    return "\n".join([*lines, "", f"Measured with {environment}."])


def format_scaling_figure() -> str:
    """Return a figure of the multiply-adds over phi, with a slider that scales B0. Without a script it stands still."""
    points = []
    for phi in PHIS:
        spec = scale_by_phi("b0", phi)
        cost = count_cost(spec)
        points.append([phi, spec.depth, spec.width, spec.resolution, cost.params, cost.macs])
    names = {name: (load_variant(name), count_cost(name)) for name in FAMILY}
    family = [
        (name, solve_phi(spec.resolution / load_variant("b0").resolution, PAPER.gamma), cost.macs)
        for name, (spec, cost) in names.items()
    ]
    low, high = math.log10(min(p[-1] for p in points)), math.log10(max(p[-1] for p in points))

    def place(phi: float, macs: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - MARGIN - 20) * phi / PHIS[-1]
        return round(x, 1), round(HEIGHT - MARGIN - (HEIGHT - MARGIN - 34) * (math.log10(macs) - low) / (high - low), 1)

    places = [place(point[0], point[-1]) for point in points]
    shapes = [f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}"/>']
    for billions in (0.5, 1, 2, 5, 10, 20, 50):
        _, y = place(0, billions * 1e9)
        if 20 < y:
            shapes.append(f'<text class="end" x="{MARGIN - 8}" y="{y + 4}">{billions:g}</text>')
    for phi in range(int(PHIS[-1]) + 1):
        shapes.append(f'<text x="{place(phi, 1e9)[0]}" y="{HEIGHT - MARGIN + 20}">{phi}</text>')
    for name, phi, macs in family:
        x, y = place(phi, macs)
        shapes.append(f'<circle cx="{x}" cy="{y}" r="4"/>')
        x, y = (x - 7, y - 5) if phi else (x + 30, y + 5)
        shapes.append(f'<text class="end" x="{x:.1f}" y="{y:.1f}">{name.upper()}</text>')
    shapes.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}">phi</text>')
    shapes.append('<text class="start" x="0" y="14">billion multiply-adds</text>')
    shapes.append(f'<circle class="marker" cx="{places[0][0]}" cy="{places[0][1]}" r="6"/>')
    data = html.escape(json.dumps({"points": points, "places": places}), quote=True)
    label = "Billions of multiply-adds over phi: B0 scaled by the formula (line), and the published networks (points)"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'
    slider = f'<input type="range" min="0" max="{len(PHIS) - 1}" value="0" aria-label="phi"><output></output>'
    caption = f"<figcaption>{label}. Move the slider to scale B0.</figcaption>"
    return f'<figure class="scaling" data-scaling="{data}">{svg}{slider}{caption}</figure>'


def format_gpu() -> str:
    """Return the rates of JAX and timm on a GPU, from `docs/speed/gpu.json`, which `gpu_benchmark.py` writes."""
    report = json.loads((ROOT / "docs" / "speed" / "gpu.json").read_text(encoding="utf-8"))
    lines = ["| network | mode | batch | GPU | this package | timm | ratio |", "|---|---|--:|---|--:|--:|--:|"]
    cases = {}
    for row in report["rows"]:
        cases.setdefault((row["variant"], row["size"], row["mode"], row["batch"]), {})[row["implementation"]] = row
    for (variant, size, mode, batch), rows in cases.items():
        rates = [f"{row['images_per_second']:,.0f} ({row['low']:,.0f} to {row['high']:,.0f})" for row in rows.values()]
        gpu, ratio = rows["jax"]["device"], rows["jax"]["of_timm"]
        lines.append(f"| {variant} at {size} pixels | {mode} | {batch} | {gpu} | {' | '.join(rates)} | {ratio:.2f} |")
    versions = ", ".join(f"{name} {report['environment'][name]}" for name in ("jax", "torch", "timm"))
    about = f"Images per second on one GPU in bfloat16, with {versions}:"
    return "\n".join([about, "", *lines])


def format_soak() -> str:
    """Return what happened in the soak of the HTTP server, from `docs/speed/serving_soak.json`."""
    report = json.loads((ROOT / "docs" / "speed" / "serving_soak.json").read_text(encoding="utf-8"))
    soak, machine = report["soak"], report["environment"]
    good = {name.rpartition(" ")[2]: count for name, count in soak["requests"].items() if name.startswith("good")}
    attacks = {name: count for name, count in soak["requests"].items() if not name.startswith("good")}
    memory = soak["memory_mib"]
    answered, right = sum(good.values()), good.get("200", 0)
    return (
        f"For {soak['minutes']:g} minutes, four clients sent images and compared each answer with the one of a quiet "
        f"server. Four others sent {sum(attacks.values()):,} requests of these kinds: {', '.join(sorted(attacks))}. "
        f"{answered:,} images were answered, {right:,} of them with the status 200, and {answered - right:,} with "
        f"another one. {len(soak['wrong'])} answers were wrong or missing. The server's memory was "
        f"{memory[len(memory) // 5]:.0f} MiB after a fifth of the time, {max(memory):.0f} MiB at most, and "
        f"{memory[-1]:.0f} MiB at the end. This was {report['network']} at {report['image_size']} pixels "
        f"({report['format']}) on {machine['cores']} cores ({machine['cpu']})."
    )


def format_input_rates() -> str:
    """Return the rates of the sources of files, from `docs/speed/input_sources.json`, which `input_rates.py` writes."""
    report = json.loads((ROOT / "docs" / "speed" / "input_sources.json").read_text(encoding="utf-8"))
    lines = ["| source | images/s read | as training images | of TFRecords |", "|---|--:|--:|--:|"]
    for name in dict.fromkeys(row["source"] for row in report["rows"]):
        read, decoded = (row for row in report["rows"] if row["source"] == name)
        rates = " | ".join(f"{row['images_per_second']:,.0f}" for row in (read, decoded))
        lines.append(f"| `{name}` | {rates} | {decoded['of_records']:.0%} |")
    machine = report["environment"]
    about = (
        f"The same {report['photos']:,} photographs of about 500x375 pixels, on {machine['cores']} cores "
        f"({machine['cpu']}), read from the memory of the system:"
    )
    return "\n".join([about, "", *lines])


def format_serving() -> str:
    """Return the load table of the HTTP server, from `docs/speed/serving.json`."""
    report = json.loads((ROOT / "docs" / "speed" / "serving.json").read_text(encoding="utf-8"))
    lines = ["| server | clients | requests/s | half take at most | 99 % take at most |", "|---|--:|--:|--:|--:|"]
    limits = []
    for row in report["rows"]:
        if row["server"] == "limit":
            limits.append(f"{row['images_per_second']:.0f} images/s at batch {row['batch']}")
            continue
        times = " | ".join(f"{row[key]:.0f} ms" for key in ("p50_ms", "p99_ms"))
        lines.append(f"| {row['server']} | {row['clients']} | {row['requests_per_second']:.0f} | {times} |")
    machine = report["environment"]
    about = (
        f"Measured with {report['network']} at {report['image_size']} pixels ({report['format']}) on "
        f"{machine['cores']} cores ({machine['cpu']}), which the clients shared. By itself, the runtime computes "
        f"{' and '.join(limits)}."
    )
    return "\n".join([about, "", *lines])


def format_noisy_student() -> str:
    """Return what networks gained by learning from others, from `docs/noisy_student.json`."""
    report = json.loads((ROOT / "docs" / "noisy_student.json").read_text(encoding="utf-8"))
    about = {
        "teacher": "the small network, on the labels",
        "student": "the wide network, on the labels and on what the teacher predicts for the other images",
        "alone": "the wide network, on the labels, with the same noise",
        "distilled": "the small network, on the labels and the student's predictions for the same images",
    }
    lines = ["| network | learned from | top-1 of each seed | mean |", "|---|---|--:|--:|"]
    for name, how in about.items():
        found = [100 * run["top1"] for run in report["runs"] if run["name"] == name]
        each = ", ".join(f"{value:.1f}" for value in found)
        lines.append(f"| {name} | {how} | {each} % | {sum(found) / len(found):.1f} % |")
    counts = report["images_of_a_class"]
    steps, examples = report["runs"][0]["step"], report["runs"][0]["examples"]
    notes = (
        f"Each run made {steps:,} steps of 128 images, on {counts['labeled']:,} images of each class with a label and "
    )
    notes += f"{counts['unlabeled']:,} without one, and was evaluated on {examples:,} images."
    gains = [
        f"`{pair[0]}` is better than `{pair[1]}` by {_subtract(report, *pair)} points"
        for pair in (("student", "alone"), ("student", "teacher"), ("distilled", "teacher"))
    ]
    environment = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    gained = f"With the three seeds, {', '.join(gains)}."
    return "\n".join([*lines, "", notes, "", gained, "", f"Measured with {environment}."])


def _subtract(report, name, other):
    """Return by how many points the runs of a name are better than those of another one, for each seed."""
    found = {(run["name"], run["seed"]): 100 * run["top1"] for run in report["runs"]}
    seeds = sorted({seed for _, seed in found})
    return ", ".join(f"{found[name, seed] - found[other, seed]:+.1f}" for seed in seeds)


def format_remat() -> str:
    """Return what `train.remat` saves and costs, from `docs/memory_remat.json`."""
    report = json.loads((ROOT / "docs" / "memory_remat.json").read_text(encoding="utf-8"))
    lines = [
        "| variant | batch | `train.remat` | predicted | measured | seconds of a step |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for row in report["rows"]:
        predicted, measured = (f"{row[f'{name}_bytes'] / 2**30:.2f} GiB" for name in ("predicted", "measured"))
        cells = row["variant"], row["batch"], str(row["remat"]).lower(), predicted, measured, f"{row['seconds']:.2f}"
        lines.append(f"| {' | '.join(map(str, cells))} |")
    environment = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    return "\n".join([*lines, "", f"Measured with {environment}."])
