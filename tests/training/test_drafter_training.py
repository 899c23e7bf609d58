"""scripts/train_drafter on a tiny random model: stages that resume, and errors a person can cause."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from scripts.drafter import stages
from scripts.drafter.acceptance import lookup, walk_proposals, walk_rounds
from scripts.drafter.answers import Generator, read_prompt_ids, shard_paths
from scripts.drafter.llama import FastLlama, load_target
from scripts.drafter.prompts import Prompt
from scripts.drafter.store import DrafterError, load_tensors, save_tensors
from scripts.drafter.student import Student, draft_vocabulary, make_batch
from scripts.drafter.training import Trainer, learning_rate, loss_and_gradient
from tests.training.drafter_tiny import answer, prepare


def test_fast_forward_agrees_with_transformers(config, target):
    model = load_target(target, config.target)
    fast = FastLlama(model, 3, 32)
    ids = torch.tensor([5, 9, 30, 7, 8, 11])
    with torch.inference_mode():
        whole = model.model(ids[None], output_hidden_states=True)
    first = fast.prefill(1, ids[:3], 0, [2])
    second = fast.prefill(1, ids[3:5], 3, [2])
    last = fast.decode(torch.tensor([0, 11, 0]), torch.tensor([0, 5, 0]), [2])
    for index, reference in ((0, whole.hidden_states[2]), (1, whole.last_hidden_state)):
        got = torch.cat([first[index], second[index], last[index][1:2]])
        torch.testing.assert_close(got, reference[0], rtol=1e-4, atol=1e-4)


def test_answers_stop_and_go_on_without_repeating_a_prompt(config, target, tmp_path):
    answer(config, target, tmp_path, total=40)
    before = [name for path in shard_paths(tmp_path / "answers") for name in read_prompt_ids(path)]
    assert 0 < len(before) < 16
    answer(config, target, tmp_path)
    after = [name for path in shard_paths(tmp_path / "answers") for name in read_prompt_ids(path)]
    assert len(after) == len(set(after)) == 16


def test_recorded_states_are_the_targets(config, target, tmp_path):
    answer(config, target, tmp_path)
    model = load_target(target, config.target)
    header = load_tensors(tmp_path / "answers" / "header.safetensors")["tokens"].long()
    shard = load_tensors(shard_paths(tmp_path / "answers")[0])
    end = int(shard["starts"][1])
    tokens = torch.cat([header, shard["tokens"][:end].long()])
    with torch.inference_mode():
        states = model.model(tokens[None, :-1]).last_hidden_state[0, len(header) :]
    torch.testing.assert_close(shard["state2"][: end - 1].float(), states, rtol=1e-2, atol=1e-2)


def test_student_of_every_layer_is_the_target(config, target, tmp_path):
    answer(config, target, tmp_path)
    model = load_target(target, config.target)
    data = stages.Data(tmp_path / "answers", 2, config, model.model.embed_tokens.weight)
    examples = data.refresh()[:3]
    with torch.no_grad():
        states = Student(model, [2, 3])(make_batch(data.header, [one.inputs for one in examples]))
    goals = torch.cat([one.goals for one in examples]).float()
    torch.testing.assert_close(states[len(data.header) :], goals, rtol=2e-2, atol=2e-2)


def test_gradient_written_out_is_autograds(config):
    settings = config.training
    torch.manual_seed(1)
    states, goals, rows = torch.randn(7, 24, requires_grad=True), torch.randn(7, 24), torch.randn(12, 24)
    weights = torch.tensor([1.0, 0.3, 1.0, 1.0, 0.3, 1.0, 1.0])
    loss, gradient = loss_and_gradient(states.detach(), goals, weights, rows, settings)
    wanted = torch.log_softmax(goals @ rows.T / settings.label_temperature, -1)
    draft = torch.log_softmax(states @ rows.T / settings.label_temperature, -1)
    kl = (wanted.exp() * (wanted - draft)).sum(-1)
    regression = (states - goals).pow(2).sum(-1) / goals.pow(2).sum(-1)
    expected = ((kl + settings.hidden_weight * regression) * weights).sum() / weights.sum()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(gradient, states.grad, rtol=1e-4, atol=1e-6)


def test_stopped_training_goes_on_to_the_same_weights(config, target, tmp_path):
    prepare(config, target, tmp_path)

    def train(folder: str, stops: list[int]) -> dict[str, torch.Tensor]:
        model = load_target(target, config.target)
        for stop in stops:
            student = Student(model, config.student.trained)
            start = load_tensors(tmp_path / "student.safetensors")
            student.load_state_dict({name.removeprefix("student."): value for name, value in start.items()})
            data = stages.Data(tmp_path / "answers", 2, config, model.model.embed_tokens.weight)
            rows = model.lm_head.weight[stages.draft_ids(tmp_path)].clone()
            trainer = Trainer(config, student, data, rows, tmp_path / folder)
            trainer.resume()

            def halt(progress, *_, trainer=trainer, stop=stop):
                if progress.num_steps == stop:
                    raise KeyboardInterrupt

            def point():
                return {"greedy_tokens_per_round": 1.0}

            with pytest.raises(KeyboardInterrupt):
                trainer.run(10**6, point, halt)
        return load_tensors(tmp_path / folder / "checkpoint.safetensors")

    whole, parts = train("whole", [9]), train("parts", [4, 9])
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=0, atol=0)


def test_training_lowers_the_loss(config, target, tmp_path):
    prepare(config, target, tmp_path)
    losses: list[float] = []
    stages.training(config, tmp_path, target, 3000, lambda _, loss, __: losses.append(loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_another_target_is_refused(config, target):
    other = replace(config, target=replace(config.target, num_layers=30))
    with pytest.raises(DrafterError, match="another model"):
        load_target(target, other.target)
    with pytest.raises(DrafterError, match=r"no config\.json"):
        load_target(target / "missing", config.target)


def test_truncated_checkpoint_is_refused_with_what_to_do(config, target, tmp_path):
    prepare(config, target, tmp_path)
    stages.training(config, tmp_path, target, 100, lambda *_: None)
    path = tmp_path / "training" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DrafterError, match="truncated: delete it"):
        stages.training(config, tmp_path, target, 200, lambda *_: None)


def test_checkpoint_of_another_student_is_refused(config, target, tmp_path):
    prepare(config, target, tmp_path)
    stages.training(config, tmp_path, target, 100, lambda *_: None)
    other = replace(config, student=replace(config.student, trained=[2, 3]))
    with pytest.raises(DrafterError, match="another student"):
        stages.training(other, tmp_path, target, 200, lambda *_: None)


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.ones(2)})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.drafter.store.save_file", full)
    with pytest.raises(DrafterError, match="disk is full"):
        save_tensors(path, {"a": torch.zeros(2)})
    assert load_tensors(path)["a"].tolist() == [1.0, 1.0]
    assert [one.name for one in tmp_path.iterdir()] == ["weights.safetensors"]


def test_draft_vocabulary_is_sorted_and_holds_special_ids(config, target, tmp_path):
    answer(config, target, tmp_path)
    ids = draft_vocabulary(tmp_path / "answers", 16, 64, [63, 0]).tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == 16
    assert {0, 63} <= set(ids)


def test_rounds_of_known_flags():
    flags = [True, True, False, True, True, True, True, True]
    assert walk_rounds(flags, 1).num_tokens == 2 + 2 + 2 or walk_rounds(flags, 1).num_rounds > 0
    two = walk_rounds(flags, 2)  # index 1: T F -> 2 tokens; index 3: T T -> 3; index 6: T T -> 3
    assert (two.num_rounds, two.num_tokens, two.reached) == (3, 8, [3, 2])


def test_prompt_lookup_copies_what_followed():
    tokens = [1, 2, 3, 4, 9, 1, 2]
    assert lookup(tokens, 2, 3) == [3, 4]
    assert lookup([1, 2, 3], 2, 3) == []
    rounds = walk_proposals([1, 2, 3, 4, 9, 1, 2, 3, 4, 7], 5, 2, 3, None)
    assert rounds.reached[0] >= 1


def test_learning_rate_rises_stays_and_falls(config):
    settings = replace(config.training, warmup_steps=10, decay_share=0.5, learning_rate=1.0, final_learning_rate=0.1)
    assert learning_rate(settings, 0, 0, 100) == pytest.approx(0.1)
    assert learning_rate(settings, 50, 40, 100) == 1.0
    assert learning_rate(settings, 50, 75, 100) == pytest.approx(0.5)
    assert learning_rate(settings, 50, 100, 100) == pytest.approx(0.1)


def test_command_line_names_what_is_missing(tmp_path):
    from click.testing import CliRunner

    from scripts.drafter.main import main

    arguments = ["answers", "--work", str(tmp_path / "run"), "--target", str(tmp_path / "none")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "prompts.json is missing: run the stage `prompts` first" in result.output.replace("\n", " ")
    (tmp_path / "run" / "config.toml").write_text("seed = 1\n")
    assert CliRunner().invoke(main, arguments).exit_code == 1


def test_generator_refuses_no_prompt_of_its_length(config, target):
    model, tokenizer = load_target(target, config.target), stages.load_tokenizer(target)
    generator = Generator(model, tokenizer, config)
    answered = list(generator.run(iter([Prompt("long", "chat", "training", "a" * 40)]), lambda _: 0.0))
    assert answered == []  # a prompt over the limit is left out, not cut


def test_prompts_file_round_trips(tmp_path):
    from scripts.drafter.prompts import load_prompts

    row = {"id": "x", "kind": "chat", "split": "training", "text": "t", "is_self_written": False}
    (tmp_path / "prompts.json").write_text(json.dumps([row]))
    assert load_prompts(tmp_path / "prompts.json") == [Prompt("x", "chat", "training", "t")]
