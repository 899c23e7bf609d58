"""Models and GPUs by name: sizes against their model cards, times against data sheets, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from minedraft.cli.forecast.simulate import simulate
from minedraft.errors import ConfigError
from minedraft.sim.forwards import RooflineForward
from minedraft.sim.gpus import COMPUTE_SHARE, GPUS, MEMORY_SHARE
from minedraft.sim.planning import Placed, parse_gpus
from minedraft.sim.shapes import SHAPES, find_shape

# Parameters in billions, as the model cards say (embeddings included).
CARDS = {
    "qwen3-0.6b": 0.6, "qwen3-1.7b": 1.7, "qwen3-4b": 4.0, "qwen3-8b": 8.2, "qwen3-14b": 14.8, "qwen3-32b": 32.8,
    "llama-3.2-1b": 1.24, "llama-3.2-3b": 3.21, "llama-3.1-8b": 8.03, "llama-3.3-70b": 70.6,
    "vicuna-13b": 13.0, "vicuna-33b": 32.5, "smollm2-135m": 0.135, "qwen2.5-0.5b": 0.49, "qwen2.5-1.5b": 1.54,
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_sizes_are_those_of_the_model_cards(name: str) -> None:
    assert SHAPES[name].num_weights / 1e9 == pytest.approx(CARDS[name], rel=0.02)


def test_a_forward_of_few_rows_reads_and_one_of_many_computes() -> None:
    shape, gpu = SHAPES["llama-3.1-8b"], GPUS["h100"]
    forward = RooflineForward(shape, gpu, layer_s=0.0)
    read_s = shape.read_bytes / gpu.bytes_per_s / MEMORY_SHARE
    assert forward.work(1, 0).seconds == forward.work(64, 0).seconds == pytest.approx(read_s)
    rows = 8192
    assert forward.work(rows, 0).seconds == pytest.approx(rows * shape.flops_per_token / gpu.flops / COMPUTE_SHARE)
    # 128 KiB of keys and values a token (8 heads of 128, 32 layers): a million of them take longer than the weights.
    assert shape.kv_bytes == 128 * 1024
    assert forward.work(1, 1_000_000).seconds > 5 * read_s


def test_more_gpus_divide_the_work_and_add_their_messages() -> None:
    shape, gpu = SHAPES["qwen3-32b"], GPUS["a100"]
    one, four = (RooflineForward(shape, gpu, n).work(16, 0).seconds for n in (1, 4))
    assert one / 4 < four < one / 2.5


def test_a_folder_gives_its_sizes(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_shape("target", str(tmp_path)).num_weights == SHAPES["smollm2-135m"].num_weights
    del config["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="vocab_size"):
        find_shape("target", str(tmp_path))


@pytest.mark.parametrize(("text", "limit"), [("h9", "must be one of"), ("4xh100", "must be a GPU"), ("", "must be")])
def test_what_is_no_gpu_is_refused(text: str, limit: str) -> None:
    assert parse_gpus("target-gpu", "A100x4") == (GPUS["a100"], 4)
    with pytest.raises(ConfigError, match=limit):
        parse_gpus("target-gpu", text)


def test_a_model_that_does_not_fit_is_refused_with_numbers() -> None:
    assert Placed(SHAPES["llama-3.1-8b"], GPUS["h100"], 1).num_blocks * 16 > 400_000
    with pytest.raises(ConfigError, match=r"gpu is 'h100x1': llama-3.3-70b needs 141 GB .* h100x2 would hold it"):
        Placed(SHAPES["llama-3.3-70b"], GPUS["h100"], 1).num_blocks  # noqa: B018


def test_the_command_compares_modes_and_says_what_it_assumed() -> None:
    arguments = ["--target", "llama-3.1-8b", "--draft", "llama-3.2-1b", "--in-flight", "4", "--output-len", "16"]
    result = CliRunner().invoke(simulate, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [line.split()[:2] for line in result.output.splitlines()]
    assert [line for line in lines if line and line[0] in ("ar", "sd", "minedraft")] == [
        ["ar", "4"], ["sd", "4"], ["minedraft", "2+2"]
    ]  # fmt: skip
    assert "not measured" in " ".join(result.output.split())
    content = json.loads(CliRunner().invoke(simulate, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert [row["num_gpus"] for row in content["rows"]] == [1, 2, 2]
    assert all(row["num_failed"] == 0 for row in content["rows"])


def test_the_command_says_what_is_best_in_all_and_for_each_gpu() -> None:
    """Eight billion parameters for few requests: drafting gives the most, and uses a second GPU for it."""
    options = ["--target", "llama-3.1-8b", "--draft", "llama-3.2-1b", "--gpu", "h100", "--in-flight", "4"]
    result = CliRunner().invoke(simulate, [*options, "--output-len", "32"], catch_exceptions=False)
    said = " ".join(result.output.split())
    assert "4 in flight: sd with k = 3 gives the most" in said
    assert "ar the most a GPU" in said
    assert "h100: 989 Tflop/s, 3350 GB/s, 80 GB, by its data sheet" in said


def test_tetris_and_a_head_run_by_the_same_pipeline() -> None:
    options = ["--target", "vicuna-13b", "--draft", "vicuna-13b-eagle", "--gpu", "a100", "--in-flight", "4", "--json"]
    rates = []
    for extra in ("0", "3"):
        arguments = [*options, "--output-len", "64", "--modes", "minedraft", "--extra-drafts", extra]
        content = json.loads(CliRunner().invoke(simulate, arguments, catch_exceptions=False).stdout)
        rates.append(content["rows"][0]["rounds"]["mean_accepted_len"])
    assert rates[1] > 1.02 * rates[0] > 1.0


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ([], "target: must be given"),
        (["--target", "llama-3.1-8b", "--draft", "qwen3-0.6b"], "has 151936 words and llama-3.1-8b 128256"),
        (["--target", "llama-3.1-8b", "--modes", "sd"], "draft: must be given for sd"),
        (["--target", "llama-3.1-8b", "--gpu", "h101"], "gpu is 'h101': must be one of a100"),
        (["--target", "llama-3.1-8b", "--draft", "llama-3.2-1b", "--draft-gpu", "x"], "draft-gpu is 'x'"),
        (["--target", "llama-3.1-8b", "--draft", "llama-3.2-1b", "--in-flight", "3", "--modes", "minedraft"], "even"),
        (["--target", "llama-3.1-8b", "--measured", "some.json"], "has its own models"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: list[str], limit: str) -> None:
    with pytest.raises(ConfigError, match=limit):
        CliRunner().invoke(simulate, arguments, catch_exceptions=False)


def test_models_that_seem_exchanged_are_remarked_on() -> None:
    options = ["--target", "llama-3.2-1b", "--draft", "llama-3.1-8b", "--in-flight", "2", "--output-len", "8"]
    said = CliRunner().invoke(simulate, options, catch_exceptions=False).output
    assert "perhaps the two are exchanged" in " ".join(said.split())


def test_the_command_simulates_this_machine_from_a_result() -> None:
    path = Path(__file__).parents[3] / "scripts" / "results" / "smollm2.json"
    arguments = ["--measured", str(path), "--in-flight", "8", "--output-len", "40", "--prompt-len", "50", "--json"]
    rows = json.loads(CliRunner().invoke(simulate, arguments, catch_exceptions=False).stdout)["rows"]
    assert [row["mode"] for row in rows] == ["ar", "sd", "minedraft"]
    assert all(row["tokens_per_s"] > 100 for row in rows)
