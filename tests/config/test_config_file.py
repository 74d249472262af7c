"""Strict configuration: nothing misspelt, doubled or out of range reaches a run."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from src.config import RunConfig
from src.config_file import WRITTEN_TO, config_from_dict, config_to_dict, config_to_yaml, load_config
from src.config_file.replaced import REPLACED, TRAINING_ONLY, Replaced
from src.errors import ConfigError
from tests.rooms.sources import ROOT


def write(tmp_path: Path, text: str, name: str = "run.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_exponent_without_point_is_a_number(tmp_path: Path) -> None:
    """PyYAML reads 1e-5 as text: the learning rate must not fail, nor become a string."""
    path = write(tmp_path, "optimizer:\n  lr: 1e-5\n")
    assert load_config(path).optimizer.lr == 1e-5
    assert load_config(path, ["optimizer.lr=3e-4"]).optimizer.lr == 3e-4


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    """Folders of experiments are called so: `lr=1e-4`."""
    config = load_config(write(tmp_path, "seed: 3\n"), ["dataset.root_dir=/data/lr=1e-4/HO3D"])
    assert config.dataset.root_dir == Path("/data/lr=1e-4/HO3D")


def test_all_faults_are_named_at_once_with_file_line_key_and_rule(tmp_path: Path) -> None:
    """A user mends the file once, not fault by fault."""
    path = write(
        tmp_path,
        "seed: 3\noptimizer:\n  lr: 1e-5\n  lr: 2\n  wieght_decay: 1\nmodel: {preset: gigantic}\n"
        "training:\n  batch_size: true\n  num_epochs: 0\nlr: 3\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["dataset.rot_dir=x", "nonsense", "seed.x=2", "optimiser.lr=1"])
    text = str(caught.value)
    for part in (
        f"{path}:4: optimizer.lr: written twice (first on line 3)",
        f"{path}:5: optimizer.wieght_decay: unknown key, did you mean optimizer.weight_decay?",
        f"{path}:6: model.preset: must be one of tiny, small, base, large, huge, got 'gigantic'",
        f"{path}:8: training.batch_size: must be a whole number, got True",
        f"{path}:9: training.num_epochs: must be at least 1, got 0",
        f"{path}:10: lr: unknown key, did you mean optimizer.lr?",
        "command line: dataset.rot_dir: unknown key, did you mean dataset.root_dir?",
        "command line: 'nonsense' is not of the form section.key=value",
        "command line: seed.x: seed is a value, not a section",
        "command line: optimiser.lr: unknown key, did you mean optimizer.lr?",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("optimizer: {lr: .nan}", "must be a finite number"),
        ("optimizer: {lr: fast}", "must be a number"),
        ("optimizer: {betas: [0.9]}", "must be a list of 2 values"),
        ("optimizer: {betas: [0.9, 1.0]}", "must be below 1"),
        ("optimizer: {lr: true}", "must be a number, got True"),  # not 1.0
        ("optimizer: {lr: 0}", "must be above 0"),
        ("model: {drop_path: 1.0}", "must be below 1"),
        ("training: {ema_decay: 1.0}", "must be below 1"),  # the first weights would be judged for ever
        ("augmentation: {colour: 1}", "must be below 1"),
        ("scheduler: {warmup_fraction: 1}", "must be below 1"),
        ("training: {batch_size: true}", "must be a whole number"),
        ("dataset: 3", "is a section of keys"),
        ("dataset: {p_drop_depth: 1.5}", "must be at most 1"),
        ("runtime: {timeout_s: 1e12}", "must be at most 604800"),  # torch cannot count that far
        ("model: {image_size: [128, 100]}", "multiples of 16"),
        ("name: a/b", "must be letters"),
        ("dataset: {max_unusable: -1}", "must be a whole number such as 26, at least 0, or a share"),
        ("dataset: {max_unusable: 1.5}", "a share such as 0.1%, at least 0 and below 100 %, got 1.5"),
        ("dataset: {max_unusable: true}", "must be a whole number such as 26"),
        ("dataset: {max_unusable: abc}", "must be a whole number such as 26"),
        ("dataset: {max_unusable: null}", "must be a whole number such as 26"),
        ("dataset: {max_unusable: '26'}", "must be a whole number such as 26"),
        ("dataset: {max_unusable: 120%}", "below 100 %, got '120%'"),
        ("dataset: {max_unusable: 100 %}", "below 100 %"),
        ("dataset: {max_unusable: -1%}", "must be a whole number such as 26"),
        ("dataset: {max_unusable: 1e1%}", "must be a whole number such as 26"),
        ("- 1", "must be a mapping of sections"),
        ("a: [", "not valid YAML"),
        ("base: none.yaml", "no such file"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, text: str, rule: str) -> None:
    """Each wrong value is refused with its rule."""
    with pytest.raises(ConfigError, match=rule):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "listed", "allowed"),
    [
        ("0", 83_325, 0),
        ("26", 83_325, 26),
        ("26", 3, 26),
        ("0%", 83_325, 0),
        ("0.1%", 83_325, 83),  # 83.3
        ("2 %", 50, 1),
        ("2 %", 49, 0),
        ("0.57%", 10_000, 57),  # in floating point 56.99999999999999
        ("99.99%", 83_325, 83_316),
    ],
)
def test_a_count_or_a_share_of_the_frames(tmp_path: Path, text: str, listed: int, allowed: int) -> None:
    """As a file and as the command line spell it; a share never lets one frame more go than it says."""
    path = write(tmp_path, f"dataset:\n  max_unusable: {text}\n")
    for config in (load_config(path), load_config(write(tmp_path, ""), [f"dataset.max_unusable={text}"])):
        assert config.dataset.unusable_allowed(listed) == allowed
        assert load_config(write(tmp_path, config_to_yaml(config))) == config


def test_a_replaced_key_says_what_became_of_it(tmp_path: Path) -> None:
    """Who upgrades reads the new key's name; a checkpoint of before is still opened, with its value."""
    sentence = r"dataset.max_unreadable: is replaced by dataset.max_unusable \(a count, or a share"
    with pytest.raises(ConfigError, match=rf"run.yaml:2: {sentence}"):
        load_config(write(tmp_path, "dataset:\n  max_unreadable: 3\n"))
    with pytest.raises(ConfigError, match=rf"command line: {sentence}"):
        load_config(write(tmp_path, ""), ["dataset.max_unreadable=3"])
    tree = config_to_dict(RunConfig())
    del tree["dataset"]["max_unusable"]
    tree["dataset"]["max_unreadable"] = 3
    assert config_from_dict(tree, "checkpoint").dataset.max_unusable == 3
    assert config_from_dict(tree, "checkpoint", ["dataset.max_unusable=1%"]).dataset.max_unusable == "1%"
    with pytest.raises(ConfigError, match=rf"command line: {sentence}"):
        config_from_dict(tree, "checkpoint", ["dataset.max_unreadable=4"])


def test_a_key_that_is_gone_is_refused_and_a_checkpoint_that_keeps_it_is_read() -> None:
    """What only training read is passed over; what a score depends on must have the value that stayed."""
    with pytest.raises(ConfigError, match=r"optimizer\.eps: is gone: AdamW adds 1e-8 .*\. Leave it out"):
        load_config(ROOT / "config/demo.yaml", ["optimizer.eps=1e-6"])
    tree = config_to_dict(RunConfig())
    for key, replaced in REPLACED.items():
        section, _, name = key.partition(".")
        if replaced.by is None:
            tree[section][name] = 77 if replaced.was == TRAINING_ONLY else replaced.was
    assert config_from_dict(tree, "checkpoint") == RunConfig()


def test_a_checkpoint_that_needs_what_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored without it, it would be another network's score under this one's name."""
    monkeypatch.setitem(REPLACED, "model.wings", Replaced(was=False, sentence="is gone: no hand has any"))
    tree = config_to_dict(RunConfig())
    tree["model"]["wings"] = True
    with pytest.raises(ConfigError, match=r"checkpoint: model.wings: is gone: no hand has any, got True"):
        config_from_dict(tree, "checkpoint")


def test_order_of_sources(tmp_path: Path) -> None:
    """Defaults < the base's base < base < file < command line; a base is sought beside who names it."""
    (tmp_path / "site").mkdir()
    write(tmp_path, "seed: 1\noptimizer: {lr: 0.5}\ntraining: {num_epochs: 5, batch_size: 7}\n", "first.yaml")
    write(tmp_path, "base: ../first.yaml\nseed: 2\ntraining: {num_epochs: 6}\n", "site/second.yaml")
    third = write(tmp_path, "base: site/second.yaml\nseed: 3\n", "third.yaml")
    config = load_config(third, ["training.accumulation=9"])
    assert (config.seed, config.training.num_epochs, config.training.batch_size) == (3, 6, 7)
    assert (config.optimizer.lr, config.training.accumulation) == (0.5, 9)
    assert load_config(third, ["seed=4"]).seed == 4
    assert config.scheduler == RunConfig().scheduler


def test_faults_of_a_chain_of_bases_name_the_chain(tmp_path: Path) -> None:
    """Whoever writes three layers of settings must see which of them asks for what is not there."""
    a, b, c = (tmp_path / f"{name}.yaml" for name in "abc")
    a.write_text("base: b.yaml\n")
    b.write_text("seed: 1\nbase: c.yaml\n")
    with pytest.raises(ConfigError) as caught:
        load_config(a)
    assert str(caught.value) == f"{c}: no such file. It is the base in {b}:2, by {a} -> {b} -> {c}"
    (tmp_path / "loop").symlink_to(tmp_path)
    for back in ("a.yaml", "b.yaml", "c.yaml", "loop/a.yaml", f"../{tmp_path.name}/b.yaml"):
        c.write_text(f"base: {back}\n")
        with pytest.raises(ConfigError) as caught:
            load_config(a)
        circle = f"{c}:1: base: the files name each other in a circle: {a} -> {b} -> {c} -> {tmp_path / back}"
        assert str(caught.value) == circle
    for wrong in ("[a.yaml]", "''", '"x\\0y"', "3"):
        c.write_text(f"base: {wrong}\nbases: 1\n")
        with pytest.raises(ConfigError, match=r"c\.yaml:1: base: must name one YAML.*:2: bases: unknown"):
            load_config(a)


def test_a_chain_of_bases_has_an_end(tmp_path: Path) -> None:
    """A generated chain without end is an error, not a start that takes forever; 16 files are read."""
    for k in range(17):
        write(tmp_path, f"base: {k + 1}.yaml\n" if k < 16 else "seed: 7\n", f"{k}.yaml")
    assert load_config(tmp_path / "1.yaml").seed == 7
    with pytest.raises(ConfigError, match=r"15\.yaml:1: base: more than 16 files in a row: .*0\.yaml ->"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["seed=1", "optimizer.lr=2", "seed=1"],
            "command line: seed: given twice ('seed=1' and 'seed=1'), keep one",
        ),
        (
            ["optimizer.lr=1e-4", " optimizer.lr =1e-3"],
            "optimizer.lr: given twice ('optimizer.lr=1e-4' and ' opt",
        ),
        (
            ["model={preset: tiny}", "model.preset=base"],
            "model: is a section: set its keys, as in model.KEY=VALUE",
        ),
        (["dataset="], "dataset: is a section"),
        (["loss=null", "loss.joints_2d=0"], "loss: is a section"),
        (
            ["model.second_look=true", "augmentation.enabled=false"],
            "model.second_look: turns hands upright",
        ),
        (["seed=2026-99-99"], "seed: must be a whole number, got '2026-99-99'"),
        (["seed=[2026"], "seed: '[2026' is not a YAML value"),
    ],
)
def test_a_setting_is_given_once(tmp_path: Path, given: list[str], message: str) -> None:
    """Of two rates on a long command line the last one trained, which may not be the one that was meant."""
    path = write(tmp_path, "")
    for load in (partial(load_config, path), partial(config_from_dict, {}, "checkpoint")):
        with pytest.raises(ConfigError) as caught:
            load(given)
        assert message in str(caught.value)


def test_resolved_configuration_reads_back(tmp_path: Path) -> None:
    """config.yaml of a run folder and the copy in a checkpoint are the configuration itself."""
    config = load_config(ROOT / "config/demo.yaml", ["optimizer.lr=1e-5", "training.max_steps_per_epoch=3"])
    assert load_config(write(tmp_path, config_to_yaml(config))) == config
    assert config_from_dict(config_to_dict(config), "checkpoint") == config
    elsewhere = [f"{key}=elsewhere" for key in WRITTEN_TO]
    sent = config_to_dict(load_config(ROOT / "config/demo.yaml", elsewhere))
    assert config_from_dict(sent, "checkpoint") == load_config(ROOT / "config/demo.yaml")
    assert config_from_dict(sent, "checkpoint", elsewhere).dataset.index_dir == Path("elsewhere")
    again = config_from_dict(config_to_dict(config), "checkpoint", ["seed=9", "optimizer.lr=2e-5"])
    assert (again.seed, again.optimizer.lr) == (9, 2e-5)
    with pytest.raises(ConfigError, match="command line: 'seed' is not of the form"):
        config_from_dict(config_to_dict(config), "checkpoint", ["seed"])


def test_rules_between_values_hold_for_a_checkpoint_too() -> None:
    """Submissions are exported under a checkpoint's configuration; a size no patch grid fits must fail."""
    tree = config_to_dict(load_config(ROOT / "config/demo.yaml"))
    tree["model"]["image_size"] = [250, 192]
    tree["split"].update(by="frame", held_out_list="held_out.txt")
    with pytest.raises(ConfigError, match=r"checkpoint: model.image_size") as error:
        config_from_dict(tree, "checkpoint")
    assert "split.held_out_list" in str(error.value)


def test_print_config_and_one_line_error() -> None:
    """--print-config shows what a run would use; a misspelt key ends with one line and status 2."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "train.py", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    shown = run("--config", "config/demo.yaml", "--print-config", "optimizer.lr=2e-5")
    assert shown.returncode == 0
    assert "lr: 2.0e-05" in shown.stdout
    wrong = run("--config", "config/demo.yaml", "optimizer.learning_rate=1")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1
    assert "optimizer.learning_rate: unknown key" in wrong.stderr


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """A seed of 010 was 8, a wait of 12:30 was 750 s, a switch called off was a boolean."""
    text = "seed: 010\noptimizer: {lr: 1e-2, weight_decay: .5}\n"
    text += "runtime: {timeout_s: 1e3}\nsplit: {val_percent: 0o17}\n"
    config = load_config(write(tmp_path, text), ["training.num_epochs=0x10", "dataset.cache=off"])
    assert (config.seed, config.split.val_percent, config.training.num_epochs) == (10, 15, 16)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.runtime.timeout_s) == (
        0.01,
        0.5,
        1000.0,
    )
    assert config.dataset.cache == "off"
    for given, rule in (
        ("runtime.timeout_s=12:30", "must be a number, got '12:30'"),
        ("seed=1_000", "must be a whole number, got '1_000'"),
        ("seed=1e3", "must be a whole number, got 1000.0"),
        ("optimizer.lr='1e-5'", "must be a number, got '1e-5'"),
        ("runtime.deterministic=no", "must be true or false, got 'no'"),
        ("dataset.cache=false", "must be text, got False"),
        ("seed=9223372036854775808", "must have at most 63 bits"),
    ):
        with pytest.raises(ConfigError, match=rule):
            load_config(write(tmp_path, ""), [given])


@pytest.mark.parametrize("name", ["1e5", "010", "0o17", "0x1F", "off", "true", "null", "1_000", "2026-01-01"])
def test_words_that_look_like_numbers_stay_words(tmp_path: Path, name: str) -> None:
    """config.yaml of a run called 1e5 was read back as a number, by this reader or by another YAML's."""
    config = dataclasses.replace(RunConfig(), name=name)
    written = config_to_yaml(config)
    assert load_config(write(tmp_path, written)) == config
    assert yaml.safe_load(written)["name"] == name


def test_few_anchors_are_read_and_many_values_are_not(tmp_path: Path) -> None:
    """A value that is used twice is a convenience; nine aliases of nine, nine times over, fill a memory."""
    config = load_config(
        write(tmp_path, "model: {image_size: &size [64, 64]}\noptimizer: {betas: [.5, .5]}\n")
    )
    assert config.model.image_size == (64, 64)
    twice = write(tmp_path, "seed: &n 3\nsplit: {val_percent: *n}\n")
    assert (load_config(twice).seed, load_config(twice).split.val_percent) == (3, 3)
    keys = [f"key{k}: 1\n" for k in range(1001)]  # each is a key and a value
    with pytest.raises(ConfigError, match=r"key19: unknown key.*; and 980 faults more"):
        load_config(write(tmp_path, "".join(keys[:1000])))
    with pytest.raises(ConfigError, match="holds more than 2,000 values"):
        load_config(write(tmp_path, "".join(keys)))


def test_a_name_in_another_encoding_is_itself() -> None:
    """Folders of a GBK archive are bytes that no YAML holds; the command line takes them all the same."""
    name = os.fsdecode("手".encode("gbk"))
    assert load_config(ROOT / "config/demo.yaml", [f"dataset.root_dir={name}"]).dataset.root_dir == Path(name)
