"""Settings: recipes, flags over recipes, what is refused, and the learning rate that they give."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from train.config import TrainConfig, load_recipe, read_flags, recipe_names
from train.optim import build_optimizer, learning_rate_at


def write_recipe(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def test_flags_override_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, "steps = 7\nseq_len = 64\nbetas = [0.8, 0.9]"))
    config = read_flags(["--seq-len", "32", "--device", "cpu"], defaults=recipe, speaks=True)
    assert (config.steps, config.seq_len, config.betas, config.device) == (7, 32, (0.8, 0.9), "cpu")
    assert config.learning_rate == TrainConfig().learning_rate


def test_every_recipe_loads_and_has_possible_settings():
    assert recipe_names() == ["demo", "litellama-460m", "tinyllama-1.1b"]
    for name in recipe_names():
        config = load_recipe(name)
        config.check()
        assert config.accumulation(world_size=1) >= 1


def test_the_published_token_counts_follow_from_the_recipes():
    tiny, lite = load_recipe("tinyllama-1.1b"), load_recipe("litellama-460m")
    assert tiny.num_steps * tiny.tokens_per_step == tiny.tokens == 3_000_001_101_824
    assert lite.num_steps * lite.tokens_per_step == lite.tokens == 98_240_888_832
    assert tiny.model_config(32_000).num_parameters() == 1_100_048_384
    assert lite.model_config(50_257).num_parameters() == 461_685_760


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match=r"no recipe 'tinyllama-1.1': did you mean 'tinyllama-1.1b'"):
        load_recipe("tinyllama-1.1")


def test_an_unknown_field_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="unknown field 'learningrate': did you mean 'learning_rate'"):
        load_recipe(write_recipe(tmp_path, "learningrate = 1e-3"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('steps = "many"', "steps must be int, not 'many'"),
        ("steps = true", "steps must be int, not True"),
        ('device = "tpu"', "device must be one of ['auto', 'cpu', 'cuda'], not 'tpu'"),
        ("document_mask = false", "document_mask must be one of ['on', 'off'], not False"),
        ("num_layers = 2.5", "num_layers must be int, not 2.5"),
        ("tie_embeddings = 'no'", "tie_embeddings must be bool, not 'no'"),
        ("mix = ['prose']", "mix must be str, not ['prose']"),
        ("out = 3", "out must be pathlib.Path, not 3"),
        ("betas = [0.9]", "betas must be list[float, float], not [0.9]"),
        ("betas = [0.9, 'x']", "betas must be list[float, float], not [0.9, 'x']"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_what_is_allowed(tmp_path, line, message):
    with pytest.raises(ValueError, match=re.escape(f"own.toml: {message}")):
        load_recipe(write_recipe(tmp_path, line))


def test_a_file_that_is_not_toml_is_refused_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"own.toml is not TOML"):
        load_recipe(write_recipe(tmp_path, "steps ="))


def test_an_unknown_flag_ends_the_program_and_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as error:
        read_flags(["--learning-rat", "1"], defaults=TrainConfig(), speaks=True)
    assert error.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps must be positive, not 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, not -1"),
        ({"min_lr_fraction": 2.0}, "min_lr_fraction must be from 0 to 1, not 2.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, not nan"),
        ({"grad_clip": float("inf")}, "grad_clip must be positive, not inf"),
        ({"betas": (0.9, 1.0)}, "betas must be at least 0 and less than 1"),
        ({"warmup_steps": 100}, "warmup_steps 100 must be fewer than steps 100"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_value(setting, message):
    with pytest.raises(ValueError, match=message):
        replace(TrainConfig(), **setting).check()


def test_values_become_their_fields_types(tmp_path):
    config = load_recipe(write_recipe(tmp_path, 'out = "runs/x"\ngrad_clip = 1\ndocument_mask = "off"'))
    assert config.out == Path("runs/x") and type(config.grad_clip) is float and config.document_mask == "off"


def test_the_document_mask_is_on_or_off_as_a_flag():
    masks = [read_flags(flags, defaults=TrainConfig(), speaks=True).document_mask for flags in (
        [], ["--document-mask", "on"], ["--document-mask", "off"],
    )]  # fmt: skip
    assert masks == ["on", "on", "off"]
    with pytest.raises(SystemExit):
        read_flags(["--document-mask", "False"], defaults=TrainConfig(), speaks=False)


def test_a_window_longer_than_the_named_size_lengthens_the_model():
    config = TrainConfig(seq_len=512, model="demo")
    config.check()
    assert config.model_config(64).max_seq_len == 512
    assert TrainConfig(seq_len=32, model="demo").model_config(64).max_seq_len == 256


def test_accumulation_is_derived_and_an_impossible_one_names_numbers_that_work():
    config = TrainConfig(seq_len=256, tokens_per_step=8192, micro_batch_size=8)
    assert [config.accumulation(world_size) for world_size in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ValueError, match="8,192 is not a multiple .* = 6,144: use --tokens-per-step 6,144 or 12,288"):
        config.accumulation(world_size=3)


def test_the_learning_rate_peaks_after_the_warmup_and_ends_at_its_minimum():
    config = TrainConfig(learning_rate=1.0, min_lr_fraction=0.1, warmup_steps=10, steps=100)
    rates = [learning_rate_at(step, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(earlier > later for earlier, later in zip(rates[9:], rates[10:], strict=False))


def test_without_a_warmup_the_first_step_is_near_the_peak():
    config = TrainConfig(learning_rate=1.0, warmup_steps=0, steps=1000)
    assert learning_rate_at(1, config) == pytest.approx(1.0, abs=1e-4)


def test_wsd_holds_the_peak_and_falls_in_a_line_at_the_end():
    config = TrainConfig(
        schedule="wsd", learning_rate=1.0, min_lr_fraction=0.1, warmup_steps=10, decay_fraction=0.25, steps=110
    )
    rates = [learning_rate_at(step, config) for step in range(1, 111)]
    assert rates[9:85] == [1.0] * 76 and rates[-1] == pytest.approx(0.1)
    falls = [before - after for before, after in zip(rates[85:], rates[86:], strict=False)]
    assert falls == pytest.approx([0.9 / 25] * len(falls))


def test_tokens_are_rounded_up_to_whole_steps_and_steps_stand_instead_of_them():
    config = TrainConfig(tokens=10_000, tokens_per_step=4096)
    assert config.num_steps == 3 and replace(config, steps=7).num_steps == 7


def test_each_known_mistake_of_tinyllama_is_off_and_can_be_made_by_name():
    recipe = load_recipe("tinyllama-1.1b")
    assert recipe.mistakes == ()
    floor = read_flags(["--mistakes", "lr-floor", "decay-norms"], defaults=recipe, speaks=True)
    assert floor.mistakes == ("lr-floor", "decay-norms")
    assert learning_rate_at(240_000, floor) == 4e-4 > learning_rate_at(240_000, recipe)
    assert learning_rate_at(240_001, floor) == learning_rate_at(240_001, recipe)
    decays = [
        {group["weight_decay"] for group in build_optimizer(nn.Sequential(nn.Linear(2, 2)), config).param_groups}
        for config in (recipe, floor)
    ]
    assert decays == [{0.1, 0.0}, {0.1}]


def test_an_unknown_mistake_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mistakes must be list\[one of \['lr-floor', 'decay-norms', 'bos-fill'\]"):
        load_recipe(write_recipe(tmp_path, 'mistakes = ["lr-flor"]'))
