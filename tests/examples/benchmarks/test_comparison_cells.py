import json
import math
from dataclasses import replace

# The scripts, which helpers.comparison puts on the path.
import compare_generators
import pytest
import torch
from comparison import cells, inputs, timing, training
from comparison.arguments import parse_arguments
from comparison.contenders import ABLATIONS, CONTENDERS
from comparison.plan import best_options, misfit, one_of_each, seeds, trials
from comparison.registry import ALL
from helpers.comparison import SMALL, cell, result, rows

WITHOUT_ALPHA = ("no_strength", "gca_counting")


@pytest.mark.parametrize("stage", ["tune", "run"])
def test_a_run_that_diverges_recalls_nothing(stage, monkeypatch):
    def broken(self, images):
        embeddings = forward(self, images)
        return embeddings * math.nan if self.training else embeddings

    forward = inputs.Embedder.forward
    monkeypatch.setattr(inputs.Embedder, "forward", broken)
    found = training.train(cell("gca", stage=stage))
    assert (found["diverged"], found["val_recall_at_1"]) == (1, 0.0)
    assert found["history"]["iterations"] == [0]
    assert found.get("metrics", {}) == ({} if stage == "tune" else dict.fromkeys(training.METRICS, 0.0))


def test_iterations_are_timed_in_turns(tmp_path, capsys, monkeypatch):
    arguments = [*SMALL, "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"nothing is tuned for n_pairs in .* yet, so there is nothing to time"):
        compare_generators.main([*arguments, "--time"])
    compare_generators.main(arguments)
    alone = ("none", "none_double", "none_longer")
    monkeypatch.setattr(compare_generators, "ROUNDS", 2)
    compare_generators.main([*arguments, "--time"])
    args = parse_arguments(arguments)
    cells_of_each = one_of_each(args, "n_pairs")
    seconds = timing.read_times(cells_of_each, args.out)
    assert {name: len(turns) for name, turns in seconds.items()} == dict.fromkeys((*alone, "constant"), 2)
    assert min(min(values) for values in seconds.values()) > 0
    capsys.readouterr()
    compare_generators.main([*arguments, "--report"])
    assert f"| {timing.ratios(seconds)['constant']:.2f} × |" in capsys.readouterr().out
    longer = parse_arguments([*arguments, "--iterations", "9"])
    assert timing.read_times(one_of_each(longer, "n_pairs"), longer.out) == seconds
    one = cells_of_each["constant"]
    changed = {**cells_of_each, "constant": replace(one, settings={**one.settings, "lr": 7})}
    with pytest.raises(
        ValueError,
        match=r"times\.csv: run n_pairs constant 0 has other settings \(lr is 7, was .*\); time them again with --time",
    ):
        timing.read_times(changed, args.out)
    assert timing.read_times({"none": cells_of_each["none"]}, args.out) == {"none": seconds["none"]}
    del args.out.times.rows[cells_of_each["none"].key]["seconds"]
    args.out.times.save()
    with pytest.raises(SystemExit, match=r"times\.csv: run n_pairs none 0 has no seconds"):
        compare_generators.main([*arguments, "--report"])


def test_times_of_a_loss_are_kept_or_dropped_together(tmp_path, monkeypatch):
    study = parse_arguments(["--out", str(tmp_path)]).out
    monkeypatch.setattr(timing.Run, "step", lambda self: None)
    both = {name: cell(name) for name in ("none", "constant")}
    other = {"none": replace(cell(), loss="n_pairs")}
    for timed, rounds in ((both, 3), (other, 2), ({"none": both["none"]}, 1)):
        timing.time_iterations(timed, study, rounds)
    kept = [(row["loss"], row["contender"], len(json.loads(row["seconds"]))) for row in rows(study.times.file)]
    assert kept == [("n_pairs", "none", 2), ("proxy_anchor", "none", 1)]
    assert timing.read_times(both, study).keys() == {"none"}


def test_ratios_of_times_are_medians_of_turns_side_by_side():
    assert timing.ratios({"gca": [2.0, 30.0, 40.0], "none": [1.0, 10.0, 1.0]}) == {"gca": 3.0, "none": 1.0}
    assert timing.ratios({"gca": [2.0]}) == {}


@pytest.mark.parametrize("contender", [*CONTENDERS, *ABLATIONS])
def test_every_contender_trains(contender):
    loss = "n_pairs" if misfit("proxy_anchor", contender) else "proxy_anchor"
    found = training.train(cell(contender, loss=loss))
    assert 0 < found["val_recall_at_1"] <= 1
    assert found["history"]["iterations"] == [0, 2]


def test_the_small_network_embeds_its_features_by_its_head():
    network, images = inputs.Embedder(16, 6), torch.rand(4, 1, 16, 16)
    features = network.features(images)
    assert features.shape == (4, network.num_features)
    torch.testing.assert_close(network.head(features), network(images), rtol=0, atol=0)
    torch.testing.assert_close(network.layers(images), network(images), rtol=0, atol=0)
    assert isinstance(network.head, torch.nn.Linear)


@pytest.mark.parametrize("contender", ["gca", "random", "alternating"])
def test_a_cell_repeats_itself(contender):
    first, second = (training.train(cell(contender)) for _ in range(2))
    for found in (first, second):
        del found["seconds"], found["history"]["seconds"]
    assert first == second


def test_trials_differ_and_are_always_the_same():
    tuned = {"lr": (1, 2, 3), "alpha": (0.0, 5.0)}
    found = cells.trial_options("gca", "n_pairs", tuned, 4)
    assert len({json.dumps(options) for options in found}) == 4
    assert all(options["lr"] in (1, 2, 3) and options["alpha"] in (0.0, 5.0) for options in found)
    assert found == cells.trial_options("gca", "n_pairs", tuned, 4)
    assert len(cells.trial_options("gca", "n_pairs", tuned, 100)) == 6
    assert cells.trial_options("none", "n_pairs", {}, 5) == [{}]


def test_trials_spread_over_every_hyperparameter():
    tuned = {"lr": (1, 2, 3, 4, 5, 6), "alpha": (0.0, 5.0, 9.0)}
    found = cells.trial_options("gca", "n_pairs", tuned, 6)
    assert sorted(options["lr"] for options in found) == [1, 2, 3, 4, 5, 6]
    assert sorted(options["alpha"] for options in found) == [0.0, 0.0, 5.0, 5.0, 9.0, 9.0]


def test_longer_runs_have_the_trials_of_the_plain_one():
    args = parse_arguments(["--iterations", "10", "--seeds", "1"])
    names = ("none", "none_double", "none_longer")
    plain, *longer = (trials(args, "n_pairs", name) for name in names)
    assert longer == [plain, plain]
    found = [seeds(args, "n_pairs", name, {"lr": 1})[0] for name in names]
    assert [cell.settings["iterations"] for cell in found] == [10, 20, 30]


def test_an_ablation_has_the_hyperparameters_of_the_whole(tmp_path):
    args = parse_arguments(["--trials", "2", "--out", str(tmp_path)])
    tried = trials(args, "n_pairs", "gca")
    for trial in tried:
        args.out.write(trial, result(trial.settings["alpha"]))
    chosen = max(tried, key=lambda trial: trial.settings["alpha"])
    best = {name: chosen.settings[name] for name in ("alpha", "generator_lr", "lr")}
    assert best["alpha"] > 0
    whole = seeds(args, "n_pairs", "gca", best)[0].settings
    for name in ("gca", "gca_counting", *ABLATIONS):
        assert best_options(args, "n_pairs", name) == (best, best["alpha"])
        settings = seeds(args, "n_pairs", name, best)[0].settings
        expected = {**best, **({"alpha": 0.0} if name in WITHOUT_ALPHA else {})}
        assert {option: settings[option] for option in best} == expected
        changed = {option for option in {*whole, *settings} if whole.get(option) != settings.get(option)}
        assert changed - {"alpha"} <= set(ALL[name].settings)
        assert settings.get("beta") == {"gca_counting": 1e6, "full_weight": 1e6, "no_synthesis": 0.0}.get(name)


@pytest.mark.parametrize(
    ("name", "other", "fixed", "differs"),
    [
        ("gca_hardest", "graph_hardest", {"beta": 1e6}, {"coefficient"}),
        ("gca_hardest_free", "graph_hardest", {"beta": 1e6}, {"coefficient", "diversity_weight"}),
        ("linear_as_graph", "graph_real", {}, {"num_layers"}),
        ("linear_hardest", "graph_hardest", {}, {"num_layers"}),
    ],
)
def test_a_contender_with_the_hyperparameters_of_another(name, other, fixed, differs, tmp_path):
    args = parse_arguments(["--trials", "1", "--out", str(tmp_path)])
    (trial,) = trials(args, "n_pairs", other)
    args.out.write(trial, result())
    best = {option: trial.settings[option] for option in ("generator_lr", "lr")}
    assert best_options(args, "n_pairs", name) == (best, 0.5)
    mine, its = (seeds(args, "n_pairs", which, best)[0].settings for which in (name, other))
    assert {key for key in {*mine, *its} if mine.get(key) != its.get(key)} == {*differs, *fixed}
    assert {key: mine[key] for key in (*best, *fixed)} == {**best, **fixed}


def test_training_keeps_its_settings_from_the_generator():
    """Each setting of a cell is one of training or an argument of the generator; defaults hold where it has none."""
    settings = {"alpha": 3.0, "weight_decay": 0.5, "proxy_lr_factor": 2.0, "generator_lr": 0.25, "beta": 4.0}
    run = training.Run(cell("gca", settings))
    assert run.generator.alpha == 3.0
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.5}
    assert {group["initial_lr"] for group in run.optimizer.param_groups} == {1e-3, 0.25, 2e-3}
    with pytest.raises(TypeError, match="strength"):
        training.Run(cell("gca", {"strength": 1.0}))


def test_seeds_of_trials_are_no_runs():
    assert cell(number=3).seed == cell(number=4).seed == 1000
    assert cell(stage="run", number=3).seed == 3
