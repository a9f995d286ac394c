"""Tests of the designs of the studies, which follow the paper, and of the command `study`."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fake_training
import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.config.text import escape
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import compound
from efficientnet_tf.study import __main__ as study_command
from efficientnet_tf.study.columns import average_seeds
from efficientnet_tf.study.inference import add_inference, measure_inference
from efficientnet_tf.study.report import list_caveats
from efficientnet_tf.study.runner import run_jobs
from efficientnet_tf.study.runs import make_runs

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
B0 = load_variant("b0").model_copy(update={"resolution": 32})


def parse(*flags):
    return study_command.make_parser().parse_args(list(flags))


def define(name, *flags):
    return study_command.make_study(parse(f"--study={name}", *flags))


def multipliers(network):
    """Return the depth, width and resolution of a network divided by those of its base."""
    spec, base = network.spec, network.base
    return spec.depth / base.depth, spec.width / base.width, spec.resolution / base.resolution


# ------------------------------------------------------------------------------------------------ the studies


def test_one_dimension_has_the_multipliers_of_the_paper_and_one_base():
    found = {network.name: multipliers(network) for network in define("one_dimension", "--resolution=400").networks}
    expected = {"base": (1, 1, 1)}
    expected |= {f"depth{d}": (d, 1, 1) for d in (2, 3, 4, 6, 8)}
    expected |= {f"width{w}": (1, w, 1) for w in (1.4, 1.8, 2.6, 3.8, 5)}
    expected |= {f"resolution{r}": (1, 1, r) for r in (1.3, 1.5, 1.7, 1.9, 2.2, 2.5)}
    expected |= {f"compound{phi}": compound(phi) for phi in (1, 2, 3, 4)}
    assert list(found) == list(expected)
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers, rel=5e-3)


def test_lines_of_one_dimension_share_the_base():
    study = define("one_dimension", "--widths=1,2", "--depths=1,3", "--resolutions=1", "--phis=0,1", "--alpha=1.3")
    points = [network.labels | {"name": network.name} for network in study.networks]
    lines = {name: [point["name"] for point in line] for name, line in study.make_lines(points).items()}
    assert lines == {
        "depth": ["base", "depth3"],
        "width": ["base", "width2"],
        "resolution": ["base"],
        "compound": ["base", "compound1"],
    }
    assert study.networks[-1].spec.depth == 1.3


def test_interaction_follows_the_paper():
    study = define("interaction", "--resolution=200")
    widths = (1, 1.4, 1.8, 2.6, 3.8, 5)
    expected = [(d, w, r) for d, r in ((1, 1), (1, 1.3), (2, 1), (2, 1.3)) for w in widths]
    assert [multipliers(network) for network in study.networks] == [pytest.approx(numbers) for numbers in expected]
    lines = study.make_lines([network.labels for network in study.networks])
    assert list(lines) == ["d=1, r=1", "d=1, r=1.3", "d=2, r=1", "d=2, r=1.3"]
    assert {len(line) for line in lines.values()} == {6}


def test_family_has_the_published_resolutions_at_224_and_their_ratios_elsewhere():
    names = [f"b{i}" for i in range(8)]
    flags = ["--variants=" + ",".join(names)]
    for network in define("family", "--resolution=224", *flags).networks:
        assert network.spec == load_variant(network.name)
    sides = [network.spec.resolution for network in define("family", "--resolution=32", *flags).networks]
    assert sides == [32, 36, 36, 44, 56, 64, 76, 84]


def test_family_takes_one_rate_or_one_for_each_or_a_grid():
    one = define("family", "--variants=b0,b1", "--set=optimizer.learning_rate=0.03")
    assert [network.labels["learning_rate"] for network in one.networks] == [0.03, 0.03]
    assert [network.overrides for network in one.networks] == [(), ()]
    each = define("family", "--variants=b0,b1", "--learning_rates=b1:0.002,b0:0.004")
    assert [network.overrides[0] for network in each.networks] == [
        "optimizer.learning_rate=0.004",
        "optimizer.learning_rate=0.002",
    ]
    grid = define("family", "--variants=b0,b1", "--learning_rate_grid=0.004,0.002")
    assert [network.name for network in grid.networks] == [
        "b0_rate0.002",
        "b1_rate0.002",
        "b0_rate0.004",
        "b1_rate0.004",
    ]
    points = [
        network.labels | {"top1": top1} for network, top1 in zip(grid.networks, (0.8, 0.9, 0.85, 0.7), strict=True)
    ]
    lines = grid.make_lines(points)
    assert list(lines) == ["rate 0.002 for all", "rate 0.004 for all", "best rate of each"]
    assert lines["best rate of each"] == [points[2], points[1]]
    assert list(grid.find_conclusions(lines)) == [
        "Rate 0.002 for all: b0 80.00%, b1 90.00%.",
        "Rate 0.004 for all: b0 85.00%, b1 70.00%. The largest variant is less accurate than the smallest one.",
        "Best rate of each: b0 85.00%, b1 90.00%.",
    ]


def test_family_needs_a_rate_for_each():
    with pytest.raises(UserError, match="learning_rates=b0:0.004,b9:0.1 .* Give one rate for each of b0, b1"):
        define("family", "--variants=b0,b1", "--learning_rates=b0:0.004,b9:0.1")


# Published: multiply-adds in billions, top-1.
TABLE_3 = {
    "mobilenetv1": [(0.6, 70.6), (2.2, 74.2), (2.2, 72.7), (2.3, 75.6)],
    "mobilenetv2": [(0.3, 72.0), (1.2, 76.8), (1.1, 76.4), (1.2, 74.8), (1.3, 77.4)],
    "resnet50": [(4.1, 76.0), (16.2, 78.1), (14.7, 77.7), (16.4, 77.5), (16.7, 78.8)],
}


def test_baselines_follow_the_paper_and_show_its_numbers():
    study = define("baselines", "--resolution=200")
    lines = study.make_lines([network.labels for network in study.networks])
    for name, published in TABLE_3.items():
        found = [(label["paper_macs"] / 1e9, label["paper_top1"] * 100) for label in lines[name]]
        assert found == [pytest.approx(row) for row in published]
    scaled = {network.name: multipliers(network) for network in study.networks}
    assert "mobilenetv1_d4" not in scaled
    assert scaled["resnet50_base"] == (1, 1, 1)
    assert scaled["resnet50_d4"] == (4, 1, 1)
    assert scaled["resnet50_w2"] == (1, 2, 1)
    assert scaled["resnet50_r2"] == (1, 1, 2)
    assert scaled["resnet50_compound"] == pytest.approx((1.4, 1.2, 1.3))


@pytest.mark.parametrize("name", ["one_dimension", "interaction", "family", "baselines"])
def test_runs_have_unique_names_and_take_turns_by_seed(name):
    networks = define(name).networks
    runs = make_runs(networks, 3)
    assert len({run.name for run in runs}) == len(runs) == 3 * len(networks)
    assert all(re.fullmatch(r"[\w.]+", run.name) for run in runs)
    assert [run.labels["seed"] for run in runs] == [seed for seed in range(3) for _ in networks]


# ------------------------------------------------------------------------------------------------ the command


def run(*flags):
    return study_command.main(parse(*flags))


def test_list_shows_the_cost_of_each_network(capsys):
    assert run("--study=one_dimension", "--list", "--seeds=2", "--resolution=224") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {words[0]: words[1:] for words in map(str.split, lines) if words}
    assert rows["base"] == ["1", "1", "224", "5.289", f"{count_cost('b0').macs / 1e6:.1f}", "1.00x"]
    assert float(rows["depth4"][4]) == pytest.approx(1575, rel=1e-3)
    assert lines[-1] == "Networks: 21, seeds: 2, runs: 42. Costs are for 1,000 classes."


def test_the_architecture_of_the_recipe_is_scaled_and_counted(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    digits = (Path(TINY).parents[1] / "configs/recipes/digits.yaml").read_text()
    recipe.write_text(digits.replace("model: {", "model: {stem_stride: 1, "))
    flags = ["--study=one_dimension", "--widths=2", "--depths=1", "--resolutions=1", "--phis=0", "--resolution=64"]
    assert run(*flags, f"--recipe={recipe}", "--list") == 0
    rows = {words[0]: words[1:] for words in map(str.split, capsys.readouterr().out.splitlines()) if words}
    base = load_variant("b0").model_copy(update={"stem_stride": 1, "resolution": 64})
    wide = count_cost(base.model_copy(update={"width": 2.0}))
    assert rows["base"][4] == f"{count_cost(base).macs / 1e6:.1f}"
    assert rows["width2"][4:] == [f"{wide.macs / 1e6:.1f}", f"{wide.macs / count_cost(base).macs:.2f}x"]
    with pytest.raises(UserError, match=r"model\.width, 1\.0 for width2_seed0, but .* changes it to 0\.5 for all"):
        run(*flags, "--set=model.width=0.5", f"--output_dir={tmp_path / 'study'}")


@pytest.mark.parametrize(
    "flag",
    [
        *("--widths=1,-2", "--phis=-1", "--learning_rates=b0", "--resolution=4", "--networks=vgg", "--widths=0"),
        *("--widths=nan", "--depths=inf", "--resolutions=101", "--widths=1e-300", "--phis=nan", "--alpha=inf"),
        *("--learning_rates=b0:nan", "--learning_rates=b0:1,b0:2", "--learning_rate_grid=0", "--resolution=10001"),
        *("--seeds=0", "--seeds=nan", "--heartbeat_seconds=0", "--heartbeat_seconds=99999999999999999999"),
    ],
)
def test_invalid_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        parse("--study=family", flag)
    assert f"argument {flag.partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--study=one_dimension", "--phis=1000"],
            "phi=1000 with alpha 1.2, .* would scale a network by more than 100",
        ),
        (["--study=one_dimension", "--alpha=9", "--phis=9"], "phi=9 with alpha 9, .* would scale a network by more"),
        (["--study=interaction", "--seeds=1000000000"], "24 networks with 1,000,000,000 seeds each are more than"),
        (["--study=family", f"--variants={TINY},tiny.yaml"], "has two variants named 'tiny'"),
        (["--study=family", "--variants="], "."),
        (["--study=family", "--learning_rates=\x1b[31m:1"], r"learning_rates=\\x1b\[31m:1 does not match the variants"),
    ],
)
def test_numbers_and_names_out_of_range_are_refused(flags, message, monkeypatch):
    monkeypatch.chdir(Path(TINY).parent)
    with pytest.raises(UserError, match=message) as raised:
        run(*flags, "--list")
    assert str(raised.value).isprintable()


def test_files_with_odd_names_are_shown_literally_and_refused_as_runs(tmp_path, capsys):
    names = ["a b", "x\x1b[31m", "<img src=x>", "\u202eabc", "$x$", "n" * 200, "line\nbreak"]
    for name in names:
        path = tmp_path / f"{name}.yaml"
        shutil.copy(TINY, path)
        flags = ["--study=family", f"--variants={path}"]
        assert run(*flags, "--list") == 0
        output = capsys.readouterr().out
        assert escape(name) in output and output.replace("\n", "").isprintable()
        with pytest.raises(UserError, match=r"is no valid name of a run|is too long") as raised:
            run(*flags, f"--output_dir={tmp_path}/runs")
        assert str(raised.value).isprintable()
    assert not list(tmp_path.glob("runs/*")), "nothing is written"


@pytest.mark.parametrize("name", ["results.csv", "index.html", "measured.json"])
def test_results_that_cannot_be_written_are_noticed_before_the_training(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} cannot be written because it is a FIFO"):
        run("--study=family", f"--output_dir={tmp_path}")
    assert os.listdir(tmp_path) == [name]


def test_help_imports_nothing_heavy():
    program = (
        "import sys; sys.argv = ['study', '--help']\n"
        "from efficientnet_tf import cli\n"
        "from efficientnet_tf.study import __main__ as study\n"
        "try: cli.run(study.main, study.make_parser())\n"
        "except SystemExit: print(sorted({'tensorflow', 'plotly', 'matplotlib', 'optuna'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[]\n") and "--learning_rate_grid" in done.stdout, done.stderr


def test_missing_extras_are_named_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r"plotly is not installed. Run pip install 'efficientnet_tf\[study\]'"):
        run("--study=family", f"--output_dir={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_command_on_the_page_repeats_the_study_and_contains_no_password():
    flags = [
        "--study=family",
        "--output_dir=a b",
        "--variants=b0,b1",
        "--seeds=2",
        "--learning_rates=b0:0.004,b1:0.003",
    ]
    flags += ["--set=train.epochs=5", "--set", "augment.crop_area=[0.5, 1]"]
    args = parse(*flags, "--storage=mysql://me:secret@there", "--report")
    command = study_command.format_command(args)
    assert command.startswith("python -m efficientnet_tf.study --study=family ")
    assert not re.search("phis|widths|networks|device", command), "default values are left out"
    assert "secret" not in command and "report" not in command
    words = shlex.split(command)[3:]
    assert study_command.make_parser().parse_args(words) == parse(*flags)


FLAGS = ["--study=one_dimension", f"--baseline={TINY}", "--recipe=smoke", "--set=train.epochs=0.1"]
FLAGS += ["--set=model.stem_stride=1", "--set=data.channels=1"]
FLAGS += ["--widths=2", "--depths=2", "--resolutions=1.5", "--phis=0", "--seeds=2", "--heartbeat_seconds=1"]


class FakeMeasurement:
    """Replaces `measure_inference`, and records the variants that were measured."""

    def __init__(self):
        self.variants = []

    def __call__(self, path):
        self.variants.append(Path(path).stem)
        return 0.001 * len(self.variants)


@pytest.fixture
def measure():
    return FakeMeasurement()


def run_fake(measure, *flags, train_command=fake_training.COMMAND):
    return study_command.main(parse(*flags), train_command, measure)


def read_page(folder):
    """Return the data in the page."""
    text = (folder / "index.html").read_text()
    return json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE).group(1))


@pytest.mark.slow
def test_study_from_its_runs_to_the_page(measure, tmp_path, capsys):
    assert run_fake(measure, *FLAGS, f"--output_dir={tmp_path}") == 0
    assert "index.html with 8 of 8 runs" in capsys.readouterr().out
    page = read_page(tmp_path)
    assert {line["name"]: len(line["points"]) for line in page["lines"]} == {
        "depth": 2,
        "width": 2,
        "resolution": 2,
        "compound": 1,
    }
    assert all((tmp_path / row["config"]).is_file() for row in page["rows"])
    trained = load_variant(TINY).model_copy(update={"stem_stride": 1})
    base = next(row for row in page["rows"] if row["scaling"] == "base")
    assert base["macs"] == count_cost(trained, 32, classes=base["classes"], channels=1).macs
    wide = next(point for point in page["lines"][1]["points"] if point["name"] == "width2")
    assert wide["top1"] == pytest.approx(1 / 2 + 0.0005) and wide["top1_spread"] == pytest.approx(0.001 / 2**0.5)
    assert [name.removesuffix("_seed0") for name in measure.variants] == [
        network["name"] for network in average_seeds(page["rows"])
    ]
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == [row["run"] for row in page["rows"]]
    assert (tmp_path / "accuracy_macs.png").is_file()
    (tmp_path / "index.html").unlink()
    assert run_fake(measure, *FLAGS, f"--output_dir={tmp_path}", "--report") == 0
    assert read_page(tmp_path) == page
    assert len(measure.variants) == 4, "measured once"


# Sends SIGTERM to the process that started it, and ends as training does when it is stopped.
STOPPING_COMMAND = (sys.executable, "-c", "import os, sys; os.kill(os.getppid(), 15); sys.exit(75)")


@pytest.mark.slow
def test_finished_runs_of_an_unfinished_study_are_shown(measure, tmp_path, capsys):
    flags = [*FLAGS, f"--output_dir={tmp_path}"]
    with pytest.raises(UserError, match="No run of the study one_dimension is finished"):
        run_fake(measure, *flags, "--report")
    assert not list(tmp_path.iterdir())
    args = parse(*flags)
    runs = make_runs(study_command.make_study(args).networks, args.seeds)
    options = {"recipe": args.recipe, "overrides": args.overrides, "heartbeat_seconds": 1}
    run_jobs(runs[:2], str(tmp_path), study_name=args.study, train_command=fake_training.COMMAND, **options)
    assert run_fake(measure, *flags, train_command=STOPPING_COMMAND) == 75
    assert "with 2 of 8 runs" in capsys.readouterr().out
    page = read_page(tmp_path)
    assert (len(page["rows"]), page["info"]["planned_runs"]) == (2, 8)
    assert not measure.variants, "nothing is measured while other processes may train"


@pytest.mark.slow
def test_failed_runs_are_named(measure, tmp_path):
    flags = ["--study=family", f"--variants={TINY},b0", "--recipe=smoke", "--set=train.epochs=0.1", "--seeds=1"]
    flags += ["--resolution=224"]
    with pytest.raises(UserError, match="1 of 2 runs failed. Run the same command again"):
        run_fake(
            measure, *flags, f"--output_dir={tmp_path}", "--learning_rates=tiny:0.1,b0:200", "--heartbeat_seconds=1"
        )
    caveats = read_page(tmp_path)["info"]["caveats"]
    assert "These runs failed: b0_seed0." in caveats
    assert any(text.startswith("There is one seed for each network") for text in caveats)


def test_overlapping_spreads_are_a_caveat():
    def points(*means):
        return [{"top1": mean, "top1_spread": 0.01} for mean in means]

    def caveats(*means):
        return "\n".join(list_caveats(points(*means), "digits", 32, 2))

    assert "For 1 of 3 pairs of networks" in caveats(0.5, 0.51, 0.9)
    assert "overlap" not in caveats(0.5, 0.6)


def test_each_network_is_measured_once_and_failures_are_retried_later(tmp_path):
    runs = make_runs(define("family", "--variants=b0,b1").networks, 2)
    rows = [{"run": run.name} for run in runs]
    asked = []

    def measure(path):
        asked.append(Path(path).name)
        return None if "b1" in path and len(asked) < 3 else 0.5

    assert add_inference(rows, runs, str(tmp_path), None)[0] == {
        "run": "b0_seed0",
        "inference_seconds": None,
    }
    for seconds in (None, 0.5, 0.5):
        found = add_inference(rows, runs, str(tmp_path), measure)
        assert [row["inference_seconds"] for row in found] == [0.5, seconds] * 2
    assert asked == ["b0_seed0.yaml", "b1_seed0.yaml", "b1_seed0.yaml"]


def test_failed_measurement_is_logged(tmp_path, caplog):
    assert measure_inference(str(tmp_path / "none.yaml")) is None
    assert re.search("The inference time of .*none.yaml could not be measured: .*", caplog.text)


@pytest.mark.slow
def test_study_with_real_training(tmp_path):
    command = [sys.executable, "-m", "efficientnet_tf.study", "--study=family", f"--variants={TINY}", "--recipe=smoke"]
    command += ["--learning_rate_grid=0.002,0.004", "--seeds=1", "--resolution=224", f"--output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = read_page(tmp_path)
    assert [row["learning_rate"] for row in page["rows"]] == [0.002, 0.004]
    assert [line["name"] for line in page["lines"]][-1] == "best rate of each"
    for row in page["rows"]:
        assert 0 <= row["top1"] <= 1 and row["train_seconds"] > 0
        assert "learning_rate: " + str(row["learning_rate"]) in (tmp_path / row["config"]).read_text()


@pytest.mark.slow
def test_inference_is_measured_by_the_command_summary(tmp_path):
    variant = tmp_path / "small.yaml"
    variant.write_text(f"baseline: {TINY}\nwidth: 0.5\n")
    assert 0 < measure_inference(str(variant)) < 1


def test_baselines_have_the_costs_of_the_paper():
    networks = {network.name: network for network in define("baselines", "--resolution=224").networks}
    assert len(networks) == 14
    macs = count_cost(networks["resnet50_base"].spec).macs
    assert macs == pytest.approx(networks["resnet50_base"].labels["paper_macs"], rel=0.01)
    assert networks["mobilenetv2_compound"].spec.resolution == 292
