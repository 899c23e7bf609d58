import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from minedraft.errors import EXIT_CONFIG, ModelError
from minedraft.models.folder import check_model_folder, check_pair
from minedraft.models.generation_config import describe_unapplied, read_eos_ids
from minedraft.models.weight_files import TensorInfo, read_all_tensors
from tests.support.tiny_models import write_tiny_tokenizer

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}

TENSORS = {"a": TensorInfo("F16", (320, 4)), "b": TensorInfo("F32", (3,)), "empty": TensorInfo("I8", (0, 4))}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _edit_json(path: Path, **changes: object) -> None:
    _write_json(path, json.loads(path.read_text()) | changes)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_tokenizer(folder)
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
    weights = {"a": np.zeros((320, 4), np.float16), "b": np.zeros((3,), np.float32), "empty": np.zeros((0, 4), np.int8)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def test_a_good_folder_says_what_it_holds(folder: Path):
    info = check_model_folder(folder, "target")
    assert (info.name, info.model_type, info.vocab_size, info.max_context) == ("tiny", "llama", 320, 512)
    assert read_eos_ids(folder) == (1, 2)
    assert read_all_tensors(folder) == TENSORS


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "chat_template.jinja"])
def test_a_link_to_nothing_is_no_file_that_is_not_needed(folder: Path, name: str):
    blobs = folder.parent / "models--x" / "blobs"
    snapshot = Path(shutil.copytree(folder, blobs.parent / "snapshots" / "abc"))
    (snapshot / name).unlink(missing_ok=True)
    (snapshot / name).symlink_to(blobs / "0123")
    with pytest.raises(ModelError, match="a link to a missing file") as caught:
        check_model_folder(snapshot, "target")
    assert name in str(caught.value)


def test_a_multimodal_config_is_read_where_its_text_model_is(folder: Path):
    _write_json(
        folder / "config.json",
        {"model_type": "gemma3", "text_config": {"vocab_size": 320, "max_position_embeddings": 64, "eos_token_id": 7}},
    )
    assert check_model_folder(folder, "target").max_context == 64
    assert read_eos_ids(folder) == (1, 2, 7)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LONG = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("changes", "max_context"),
    [
        ({}, 512),
        ({"rope_parameters": {"rope_type": "default"}}, 512),
        ({"rope_parameters": LONG}, 128),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 64}, 64),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 512),
        ({"rope_parameters": {"full_attention": LONG, "sliding_attention": {"rope_type": "default"}}}, 128),
        ({"rope_scaling": YARN}, 1024),
        ({"rope_scaling": YARN, "max_position_embeddings": 1024}, 1024),
        ({"rope_scaling": YARN, "max_position_embeddings": 2048}, 2048),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 1024),
    ],
)
def test_the_context_ends_where_the_position_encoding_would_change(folder: Path, changes, max_context: int):
    _edit_json(folder / "config.json", **changes)
    assert check_model_folder(folder, "target").max_context == max_context


def test_what_is_null_is_not_given(folder: Path):
    _edit_json(folder / "config.json", text_config=None, rope_scaling=None, head_dim=None, auto_map=None)
    assert check_model_folder(folder, "target").max_context == 512


def test_a_folder_need_not_say_what_ends_an_answer(folder: Path):
    (folder / "generation_config.json").unlink()
    _edit_json(folder / "config.json", eos_token_id=None)
    check_model_folder(folder, "target")
    assert read_eos_ids(folder) == ()


def test_defaults_that_change_answers_and_are_not_applied_are_named(folder: Path):
    file = folder / "generation_config.json"
    _write_json(file, {"eos_token_id": 2, "repetition_penalty": 1.0, "temperature": 0.7, "suppress_tokens": None})
    assert describe_unapplied(folder) == ""
    _edit_json(file, repetition_penalty=1.3, no_repeat_ngram_size=2)
    assert describe_unapplied(folder) == (
        f"{file}: repetition_penalty 1.3, no_repeat_ngram_size 2 are not applied; each request sets its own sampling"
    )
    _write_json(file, {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 1.0})
    assert "do_sample True, temperature 0.7, top_k 20 are not applied" in describe_unapplied(folder)
    file.unlink()
    assert describe_unapplied(folder) == ""


def _shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(("a", "b", "empty"), "model-00001-of-00001.safetensors")
    _write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def test_shards_are_found_by_their_index(folder: Path):
    _shard(folder)
    check_model_folder(folder, "target")
    assert read_all_tensors(folder) == TENSORS


def _cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def _append(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + content)


def _replace_by(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def _remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: _edit_json(folder / "config.json", **changes)


def _generation(value: object) -> Callable[[Path], None]:
    return lambda folder: _write_json(folder / "generation_config.json", value)


def _only(*others: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in others:
            (folder / name).write_bytes(b"x")

    return change


def _gguf_alone(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")


def _index_with(weight_map: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        _shard(folder)
        _write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})

    return change


def _link_out(folder: Path) -> None:
    outside = folder.parent / "elsewhere.json"
    (folder / "tokenizer.json").rename(outside)
    (folder / "tokenizer.json").symlink_to(outside)


def _unreadable(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


def _header(entries: dict[str, object]) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header


GAP = _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + bytes(8)
WRONG_SHAPE = _header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8)
UNKNOWN_TYPE = _header({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}) + bytes(8)
NEGATIVE = _header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}})

BROKEN = {
    "missing": (shutil.rmtree, "no such folder"),
    "empty config": (_replace_by("config.json", b""), "not a JSON object"),
    "config is a list": (_replace_by("config.json", b"[]"), "not a JSON object"),
    "no config": (_remove("config.json"), "no config.json in it"),
    "no model type": (_config(model_type=""), "no model_type"),
    "no vocab size": (_config(vocab_size=None), "vocab_size must be given"),
    "no context length": (_config(max_position_embeddings=-1), "max_position_embeddings must be given"),
    "encoder-decoder": (_config(is_encoder_decoder=True), "encoder-decoder"),
    "t5": (_config(model_type="t5"), "encoder-decoder"),
    "not generative": (_config(architectures=["BertForMaskedLM"]), "BertForMaskedLM does not generate text"),
    "code": (_config(auto_map={"AutoModel": "x.Y"}), r"config\.json.*auto_map names code"),
    "code in the text model": (_config(text_config={"auto_map": {"AutoModel": "x.Y"}}), "auto_map names code"),
    "quantised": (_config(quantization_config={"quant_method": "awq"}), r"quantised weights \(awq\)"),
    "nested beyond reason": (_replace_by("config.json", b"[" * 100_000), "not a JSON object"),
    "rope factor 0": (
        _config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 0}),
        "the rope's factor must be a positive number, not 0",
    ),
    "rope factor as text": (
        _config(rope_scaling={"rope_type": "linear", "factor": "4"}),
        "the rope's factor must be a positive number, not '4'",
    ),
    "layers as text": (_config(num_hidden_layers="2"), "num_hidden_layers must be a positive integer, not '2'"),
    "no layers": (_config(num_hidden_layers=0), "num_hidden_layers must be a positive integer, not 0"),
    "heads as a switch": (_config(num_attention_heads=True), "num_attention_heads must be a positive integer"),
    "rope no object": (_config(rope_parameters=5), "rope_parameters must be an object, not 5"),
    "tying as text": (_config(tie_word_embeddings="yes"), "tie_word_embeddings must be true or false, not 'yes'"),
    "architecture no list": (_config(architectures="LlamaForCausalLM"), "architectures must be a list"),
    "model type no text": (_config(model_type=["llama"]), "model_type must be a string"),
    "text model no object": (_config(text_config=5), "text_config must be an object, not 5"),
    "wrong type in the text model": (_config(text_config={"hidden_size": "8"}), "hidden_size must be a positive"),
    "no weights": (_only(), "no weights in it"),
    "pickles only": (_only("pytorch_model.bin"), "only pytorch_model.bin: pickled weights are refused"),
    "old checkpoint": (_only("model.pt"), "only model.pt: pickled"),
    "gguf beside config": (_only("model.gguf"), r"only GGUF weights \(model.gguf\)"),
    "gguf alone": (_gguf_alone, "only GGUF weights.*minedraft models"),
    "adapter": (_only("adapter_model.safetensors"), "LoRA adapter"),
    "truncated weights": (_cut("model.safetensors", 1000), "model.safetensors: truncated: 1000 bytes"),
    "truncated header": (_cut("model.safetensors", 20), "model.safetensors: truncated"),
    "empty weights": (_cut("model.safetensors", 0), r"not a safetensors file \(0 bytes\)"),
    "longer than promised": (_append("model.safetensors", b"x"), "too long: .* expected"),
    "other file": (_replace_by("model.safetensors", b"PK\3\4" + bytes(100)), "not a safetensors file|truncated"),
    "header no table": (_replace_by("model.safetensors", struct.pack("<Q", 2) + b"[]"), "header is not the JSON table"),
    "no tensors": (_replace_by("model.safetensors", _header({})), "holds no tensors"),
    "gap": (_replace_by("model.safetensors", GAP), "offsets of tensor 'a' do not match"),
    "wrong shape": (_replace_by("model.safetensors", WRONG_SHAPE), "offsets of tensor 'a' do not match"),
    "unknown type": (_replace_by("model.safetensors", UNKNOWN_TYPE), "unknown type or shape"),
    "negative": (_replace_by("model.safetensors", NEGATIVE), "unknown type or shape"),
    "no weight map": (_index_with(None), "no weight_map"),
    "empty weight map": (_index_with({}), "weight_map is empty"),
    "shard elsewhere": (_index_with({"a": "../x.safetensors"}), "shards must be .safetensors files beside the index"),
    "shard missing": (_index_with({"a": "x.safetensors"}), "x.safetensors: missing"),
    "tensor missing": (_index_with({"q": "model-00001-of-00001.safetensors"}), "has no tensor 'q'"),
    "no tokenizer": (_remove("tokenizer.json"), "no tokenizer.json in it"),
    "truncated tokenizer": (_cut("tokenizer.json", 5000), "tokenizer.json.*not a JSON object"),
    "unreadable": (_unreadable, "tokenizer.json.*cannot be read"),
    "link out": (_link_out, "a link to a file outside the model folder"),
    "end token without a row": (_generation({"eos_token_id": [2, 400]}), r"eos_token_id 400 .*\[0, 320\)"),
    "negative end token": (_generation({"eos_token_id": -1}), r"generation_config.json.*eos_token_id -1 .*\[0, 320\)"),
    "end token as text": (_config(eos_token_id="2"), r"config.json.*eos_token_id '2' must be an integer"),
    "end token true": (_config(eos_token_id=[True]), r"config.json.*eos_token_id True must be an integer"),
    "truncated generation config": (_cut("generation_config.json", 9), "generation_config.json.*not a JSON object"),
    "generation config is a list": (_generation([2]), "generation_config.json.*not a JSON object"),
    "tokens without a row": (_config(vocab_size=314), "it has 314 token rows, the tokenizer needs 320"),
    "draft vocabulary": (_replace_by("draft_vocab.safetensors", _header({})), "tensor 'ids', int32"),
}


@pytest.mark.parametrize("change_and_message", BROKEN.values(), ids=BROKEN.keys())
def test_a_folder_that_cannot_be_served_says_why(folder: Path, change_and_message):
    change, message = change_and_message
    change(folder)
    with pytest.raises(
        ModelError, match=rf"^target is '.*tiny.*: .*(?:{message})|^target is '.*(?:{message})"
    ) as caught:
        check_model_folder(folder, "target")
    assert caught.value.exit_code == EXIT_CONFIG


def test_a_file_is_not_a_folder(folder: Path):
    with pytest.raises(ModelError, match="a file; give the folder"):
        check_model_folder(folder / "model.safetensors", "draft")
    (folder / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a GGUF file; give the folder"):
        check_model_folder(folder / "x.gguf", "draft")


def test_a_hub_cache_may_link_to_its_own_blobs(folder: Path, tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert check_model_folder(snapshot, "target").vocab_size == 320


def test_the_vocabulary_of_a_pruned_drafter_is_one_vector_of_int32(folder: Path):
    save_file({"ids": np.arange(5, dtype=np.int32)}, folder / "draft_vocab.safetensors")
    check_model_folder(folder, "draft")
    save_file({"ids": np.arange(5, dtype=np.int64)}, folder / "draft_vocab.safetensors")
    with pytest.raises(ModelError, match="'ids', int32"):
        check_model_folder(folder, "draft")


@pytest.fixture
def pair(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    return folder, Path(shutil.copytree(folder, tmp_path / "other"))


def _check_pair(pair: tuple[Path, Path]) -> None:
    check_pair(check_model_folder(pair[0], "target"), check_model_folder(pair[1], "draft"))


def test_output_layers_may_be_padded_differently(pair: tuple[Path, Path]):
    _edit_json(pair[0] / "config.json", vocab_size=400)
    _check_pair(pair)


def test_another_token_under_an_id_is_named(pair: tuple[Path, Path]):
    tokenizer = json.loads((pair[1] / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["Q"], vocab["R"] = vocab["R"], vocab["Q"]
    _write_json(pair[1] / "tokenizer.json", tokenizer)
    with pytest.raises(ModelError, match=r"^draft is .*id \d+ is '[QR]' in the draft and '[QR]' in the target \(320 "):
        _check_pair(pair)


def test_a_shorter_vocabulary_is_named(pair: tuple[Path, Path]):
    write_tiny_tokenizer(pair[1], vocab_size=310)
    with pytest.raises(ModelError, match=r"id 310 is nothing in the draft and .* \(310 and 320 tokens\)"):
        _check_pair(pair)


def test_the_draft_model_needs_a_row_for_every_token(pair: tuple[Path, Path]):
    _edit_json(pair[1] / "config.json", vocab_size=319)
    with pytest.raises(ModelError, match="319 token rows, the tokenizer needs 320"):
        _check_pair(pair)
