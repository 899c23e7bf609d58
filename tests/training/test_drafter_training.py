"""Training of drafters on a tiny random model: what is exact, what resumes, and errors a person can cause."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from scripts.drafter import stages
from scripts.drafter.data.answers import read_names, shard_paths
from scripts.drafter.data.corpus import load_examples
from scripts.drafter.data.generate import best_columns
from scripts.drafter.data.teacher import states_path
from scripts.drafter.data.vocabulary import draft_vocabulary
from scripts.drafter.evaluating.acceptance import lookup, walk_proposals, walk_rounds
from scripts.drafter.head.network import Head, HeadShape, Unrolled
from scripts.drafter.head.unrolled import attend
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.store import DrafterError, load_tensors, save_tensors
from scripts.drafter.training.losses import distillation_loss
from scripts.drafter.training.trainer import Budget, Trainer, learning_rate
from tests.training.drafter_tiny import NEVER, answered, taught, trained

KINDS = (stages.HEAD, stages.MODEL)


def test_attention_over_steps_is_a_softmax_over_all_their_keys():
    torch.manual_seed(0)
    made = [torch.randn(2, 3, 20, 8, requires_grad=True) for _ in range(7)]
    query, key, value, key1, value1, key2, value2 = made
    got = attend(query, (key, value), [(key1, value1), (key2, value2)])
    scores = (query @ key.mT).masked_fill(torch.ones(20, 20).triu(1).bool(), float("-inf"))
    own = [(query * other).sum(-1, keepdim=True) for other in (key1, key2)]
    shares = (torch.cat([scores, *own], -1) / 8**0.5).softmax(-1)
    expected = shares[..., :20] @ value + shares[..., 20:21] * value1 + shares[..., 21:] * value2
    torch.testing.assert_close(got, expected)
    slope = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, made, slope), torch.autograd.grad(expected, made, slope), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_every_position_of_a_later_step_is_a_draft_on_the_heads_own_states():
    torch.manual_seed(0)
    shape = HeadShape(24, 24, 32, 3, 3, 8, 2, (1,), 1e4, 1e-5)
    head, length = Head(shape), 9
    embeddings, states = torch.randn(1, length, 24).bfloat16(), torch.randn(1, length, 24)
    with torch.no_grad():
        run = Unrolled(head, length)
        outputs = [run.step(embeddings, states)]
        for step in (1, 2):
            outputs.append(run.step(embeddings[:, step:], outputs[-1][:, :-1]))
        for end in range(2, length):
            # Drafting: real states before `end` - 1, then the head's own, one at a time.
            mixed = states[:, : end + 1].clone()
            mixed[:, end - 1] = outputs[0][:, end - 2]
            mixed[:, end] = outputs[1][:, end - 2]
            drafted = Unrolled(head, length).step(embeddings[:, : end + 1], mixed)
            torch.testing.assert_close(drafted[:, -1], outputs[2][:, end - 2], rtol=0.03, atol=0.03)


def test_gradient_written_out_is_autograds():
    torch.manual_seed(1)
    states, goals, rows = torch.randn(7, 24, requires_grad=True), torch.randn(7, 24), torch.randn(12, 24) / 3
    weights, temperature = torch.rand(7), 0.8
    wanted = torch.softmax(goals @ rows.T / temperature, -1)
    best = wanted.argmax(-1)
    loss = distillation_loss(states, wanted, best, weights, rows, temperature)
    (got,) = torch.autograd.grad(loss, states)
    draft = torch.log_softmax(states @ rows.T / temperature, -1)
    (expected,) = torch.autograd.grad((weights[:, None] * wanted * (wanted.log() - draft)).sum(), states)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(-float((weights * draft[range(7), best]).sum().detach()), rel=1e-4)


def test_answers_stop_and_go_on_without_repeating_a_task(config, target, tmp_path):
    def done() -> list[str]:
        return [name for path in shard_paths(tmp_path / "answers") for name in read_names(path, "tasks")]

    answered(config, target, tmp_path, total=40)
    before = done()
    assert 0 < len(before) < 24
    answered(config, target, tmp_path)
    assert len(done()) == len(set(done())) == 24  # eight given prompts twice, eight turns of its own


def test_greedy_answers_and_recorded_states_are_the_targets(config, target, tmp_path):
    run = taught(config, target, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    num_same = num_greedy = 0
    for example in load_examples(shard_paths(run.answers)[0])[:6]:
        with torch.inference_mode():
            whole = model(example.tokens[None], output_hidden_states=True)
        stored = load_tensors(states_path(shard_paths(run.answers)[0]))["layer2"]
        rows = stored[example.first_row : example.first_row + len(example.tokens)].float()
        torch.testing.assert_close(rows, whole.hidden_states[2][0], rtol=0.05, atol=0.05)
        if example.temperature == 0:
            best = whole.logits[0, example.answer_start - 1 : -1].argmax(-1)
            num_same += int((best == example.tokens[example.answer_start :]).sum())
            num_greedy += len(best)
    assert num_same >= 0.9 * num_greedy > 0  # bfloat16 may turn a close decision


def test_a_draft_model_of_every_layer_accepts_all(config, target, tmp_path):
    whole = replace(config, draft_vocabulary=replace(config.draft_vocabulary, model=64))
    run = taught(whole, target, tmp_path, stages.MODEL)
    drafter = ModelDrafter(run.parts, whole.model, whole.training[stages.MODEL], (2, [2, 3]))
    found = torch.cat([one[0] for one in drafter.acceptance(run.corpus.examples(), 1)])
    assert found.mean() > 0.95  # bfloat16 may turn a close decision


@pytest.mark.parametrize("kind", KINDS)
def test_training_raises_acceptance(kind, config, target, tmp_path):
    run = taught(replace(config, model=replace(config.model, prefix=0.0, stride=2)), target, tmp_path, kind)

    def acceptance(drafter) -> float:
        return float(torch.cat([one[0] for one in drafter.acceptance(run.corpus.examples(), 1)]).mean())

    before = run.new_drafter()
    before.start(run.corpus, config.seed)
    stages.training(run, 900, 0, None, NEVER)
    assert acceptance(run.trained_drafter()) > acceptance(before) + 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_training_goes_on_to_the_same_weights(kind, config, target, tmp_path):
    run = taught(config, target, tmp_path, kind)

    def train(folder: str, stops: list[int]) -> dict[str, torch.Tensor]:
        for stop in stops:
            drafter, settings = run.new_drafter(), config.training[kind]
            trainer = Trainer(
                settings, 1, drafter.parameters(), drafter.loss_of, run.corpus.examples, tmp_path / folder
            )
            if not trainer.resume():
                drafter.start(run.corpus, 1)

            def halt(progress, *_, stop=stop):
                if progress.num_steps == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                trainer.run(Budget(10**6), dict, halt)
        return load_tensors(tmp_path / folder / "checkpoint.safetensors")

    whole, parts = train("whole", [7]), train("parts", [3, 7])
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_an_exported_drafter(kind, config, target, tmp_path):
    from scripts.drafter.head.export import export_head
    from scripts.drafter.model.export import export_model

    run = trained(config, target, tmp_path / "first", kind)
    drafter = run.trained_drafter()
    {stages.HEAD: export_head, stages.MODEL: export_model}[kind](drafter, target, "", tmp_path / "out")
    again = run.new_drafter()
    stages.load_start(again, tmp_path / "out")
    for name, parameter in again.parameters().items():
        torch.testing.assert_close(parameter, drafter.parameters()[name], rtol=2**-7, atol=0)


def test_truncated_and_foreign_checkpoints_are_refused(config, target, tmp_path):
    run = trained(config, target, tmp_path)
    layers = 1
    other = stages.Run(replace(config, head=replace(config.head, num_layers=layers)), tmp_path, target, stages.HEAD)
    with pytest.raises(DrafterError, match="another drafter"):
        other.trained_drafter()
    path = run.training / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DrafterError, match="truncated: delete it"):
        run.trained_drafter()


def test_a_folder_without_a_model_is_refused(config, tmp_path):
    run = stages.Run(config, tmp_path, tmp_path / "none", stages.HEAD)
    with pytest.raises(DrafterError, match="holds no model"):
        stages.training(run, 10, 0, None, NEVER)


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
    run = answered(config, target, tmp_path)
    ids = draft_vocabulary(run.answers, 16, 64, [63, 0]).tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == 16
    assert {0, 63} <= set(ids)


def test_rounds_of_known_flags():
    same = [[True, True, False, True, True, True, True, True]] * 2
    two = walk_rounds(same, 2)  # index 1: T F -> 2 tokens; index 3: T T -> 3; index 6: T T -> 3
    assert (two.num_rounds, two.num_tokens, two.reached) == (3, 8, [3, 2])
    # A head's second draft has flags of its own: index 1: T T -> 3; index 4: T F -> 2; index 6: T F -> 2
    own = walk_rounds([same[0], [False, True, True, False, False, False, False, False]], 2)
    assert (own.num_rounds, own.num_tokens, own.reached) == (3, 7, [3, 1])


def test_prompt_lookup_copies_what_followed():
    tokens = [1, 2, 3, 4, 9, 1, 2]
    assert lookup(tokens, 2, 3) == [3, 4]
    assert lookup([1, 2, 3], 2, 3) == []
    rounds = walk_proposals([1, 2, 3, 4, 9, 1, 2, 3, 4, 7], 5, 2, 3, None)
    assert rounds.reached[0] >= 1


def test_learning_rate_rises_stays_and_falls(config):
    settings = replace(
        config.training[stages.HEAD], warmup_steps=10, decay_share=0.5, learning_rate=1.0, final_learning_rate=0.1
    )
    assert learning_rate(settings, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(settings, 50, 0.4) == 1.0
    assert learning_rate(settings, 50, 0.75) == pytest.approx(0.5)
    assert learning_rate(settings, 50, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("num_columns", "count"), [(64, 50), (1024, 16), (4096, 50), (4133, 50)])
def test_the_largest_logits_by_groups_are_the_largest_of_all(num_columns, count):
    logits = torch.randn(5, num_columns, generator=torch.Generator().manual_seed(3))
    logits[1, num_columns - 7 :] += 9.0  # a row's best are neighbours, at its end
    values, columns = best_columns(logits, count)
    torch.testing.assert_close(values, logits.topk(count).values, rtol=0, atol=0)
    torch.testing.assert_close(logits.gather(1, columns), values, rtol=0, atol=0)


def test_fewer_columns_than_wanted_are_all_given():
    values, columns = best_columns(torch.tensor([[1.0, 3.0, 2.0]]), 50)
    assert (values.tolist(), columns.tolist()) == ([[3.0, 2.0, 1.0]], [[1, 2, 0]])
