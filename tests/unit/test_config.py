import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from minedraft.address import Address
from minedraft.cli.launch import command
from minedraft.errors import EXIT_CONFIG, ConfigErrors
from minedraft.settings.door import host_check, origins_of
from minedraft.settings.flags import settings_flags, to_flags
from minedraft.settings.loading import load_settings, load_worker_settings
from minedraft.settings.service import Settings
from minedraft.settings.shared import SharedSettings
from minedraft.settings.unused import unused
from minedraft.settings.worker import WorkerSettings
from minedraft.types import Mode, Role


def fields_of(error: ConfigErrors) -> list[str]:
    return [each.field for each in error.errors]


def rejected(flags: dict, file: Path | None = None) -> ConfigErrors:
    with pytest.raises(ConfigErrors) as caught:
        load_settings(flags, file)
    return caught.value


def test_flags_go_before_the_file_and_the_file_before_defaults(tmp_path):
    file = tmp_path / "m.toml"
    file.write_text('mode = "sd"\nmax-batch-size = 4\n')
    settings = load_settings({"max_batch_size": 2, "draft_len": None}, file)
    assert (settings.mode, settings.max_batch_size, settings.draft_len) == (Mode.SD, 2, "auto")


def test_every_problem_of_a_file_is_listed_at_once(tmp_path):
    file = tmp_path / "m.toml"
    file.write_text('speed = 11\nmode = "fast"\nmax_batch_size = "8"\nprefill_chunk = 1\ndraft_len = 0\n')
    error = rejected({}, file)
    assert fields_of(error) == [f"{file}: speed", "mode", "max_batch_size", "prefill_chunk", "draft_len"]
    assert "max_batch_size is '8': must be a valid integer" in str(error)
    assert "prefill_chunk is 1: must be greater than or equal to 16" in str(error)


@pytest.mark.parametrize(
    ("flags", "field", "limit"),
    [
        ({"draft_len": 0}, "draft_len", "use mode ar"),
        ({"target": "t", "draft": "d", "draft_method": "ngram"}, "draft", "remove one of the two"),
        ({"target": "t", "draft": "d", "draft_address": "unix:/a"}, "draft", "remove one of the two"),
        ({"draft": "d"}, "draft", "requires target"),
        ({"target": "t", "draft_method": "eagle"}, "draft", "required with draft_method eagle"),
        ({"draft_method": "eagle"}, "draft", "required with draft_method eagle"),
        ({"target": "t"}, "draft", "required with target"),
        (
            {"max_model_len": 64, "prefill_chunk": 65},
            "prefill_chunk",
            "must not exceed max_model_len 64",
        ),
        ({"max_model_len": 513, "num_blocks": 32}, "max_model_len", "num_blocks 32 of block_size 16 hold 512 tokens"),
        ({"max_model_len": 18, "draft_len": 16}, "draft_len", "one round need 19 tokens, max_model_len allows 18"),
        ({"num_blocks": 9, "block_size": 2, "draft_len": 16}, "draft_len", "num_blocks 9 of block_size 2 allows 18"),
        ({"target_device": "tpu:0"}, "target_device", "must be cpu"),
        ({"listen": "somewhere"}, "listen", "unix:PATH or host:port"),
        ({"listen": "0.0.0.0:50051"}, "listen", "missing: tls_cert, tls_key, token_file"),
        ({"listen": "127.0.0.1:50051", "tls_cert": "/c"}, "tls_key", "must be given together"),
        ({"listen": "127.0.0.1:50051", "tls_client_ca": "/c"}, "tls_client_ca", "requires tls_cert and tls_key"),
        ({"token_file": "/nowhere"}, "token_file", "No such file"),
        ({"draft_address": "10.0.0.2:7000"}, "draft_address", "requires worker_tls"),
        ({"target_address": "far:7000"}, "target_address", "requires worker_tls"),
        ({"target_address": "far:7000", "worker_tls": "/nowhere"}, "worker_tls", "No such file"),
        ({"worker_tls": "/c"}, "worker_tls", "no worker is reached by HOST:PORT (target_address, draft_address)"),
        ({"draft_address": "unix:/d", "worker_tls": "/c"}, "worker_tls", "unix sockets are used without TLS"),
        ({"draft_address": "nowhere", "worker_tls": "/c"}, "draft_address", "must be unix:PATH or host:port"),
        ({"listen": "unix:/a", "draft_address": "unix:/a"}, "draft_address", "already used for listen"),
        ({"max_waiting": 0}, "max_waiting", "greater than or equal to 1"),
        ({"target_memory_share": 0.0}, "target_memory_share", "greater than 0"),
        (
            {
                **dict.fromkeys(("target_device", "draft_device"), "cuda:1"),
                **dict.fromkeys(("target_memory_share", "draft_memory_share"), 0.6),
            },
            "draft_memory_share",
            "with target_memory_share 0.6 that is more than all of cuda:1, which both workers use",
        ),
        ({"drain_timeout_s": float("nan")}, "drain_timeout_s", "must be"),
        ({"hang_timeout_s": 0.5}, "hang_timeout_s", "must be at least 1, or 0 for never"),
        ({"model_name": " "}, "model_name", "must be printable text"),
        ({"model_name": "a\nb"}, "model_name", "must be printable text"),
        ({"http_origins": "http://a,http://b/"}, "http_origins", "without a path"),
        ({"http_origins": "example.com"}, "http_origins", "as browsers send them"),
        ({"http_hosts": "http://a.example"}, "http_hosts", "must be *, or names and addresses of hosts"),
        ({"http_hosts": "a.example,"}, "http_hosts", "must be *, or names and addresses of hosts"),
        ({"http_hosts": "a.example:80"}, "http_hosts", "must be *, or names and addresses of hosts"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(flags, field, limit):
    error = rejected(flags)
    assert fields_of(error) == [field]
    assert limit in str(error)


@pytest.mark.parametrize(
    "origins", ["*", "null", "http://localhost:3000, https://a.example", "http://[::1]:30", "app://obsidian.md"]
)
def test_origins_as_browsers_send_them_are_taken_with_space_between_them(origins):
    taken = origins_of(load_settings({"http_origins": origins}).http_origins)
    assert taken == origins.replace(" ", "").split(",")


@pytest.mark.parametrize(
    ("listens", "hosts", "is_meant"),
    [
        ("127.0.0.1:80", None, False),
        ("127.0.0.1:80", "b.example", False),
        ("127.0.0.1:80", "b.example, A.example.", True),
        ("127.0.0.1:80", "*", True),
        ("0.0.0.0:80", None, True),
        ("0.0.0.0:80", "*", True),
        ("0.0.0.0:80", "b.example,::2", False),
        ("a.example:80", "b.example", True),
    ],
)
def test_a_door_for_this_host_alone_is_not_called_by_other_names_unless_they_are_told(listens, hosts, is_meant):
    check = host_check(Address.parse(listens), load_settings({"http_hosts": hosts}).http_hosts)
    assert (check is None or check("a.example:80")) is is_meant


@pytest.mark.parametrize(
    "flags",
    [
        {"max_model_len": 512, "num_blocks": 32, "prefill_chunk": 512},
        {"max_model_len": 19, "draft_len": 16},
        {"max_model_len": 16, "draft_len": "auto"},
        {"max_model_len": 16, "draft_len": 16, "mode": "ar"},
        {"num_blocks": 8, "block_size": 1},
    ],
)
def test_lengths_that_just_fit_are_taken(flags):
    load_settings(flags)


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ({}, []),
        ({"extra_drafts": 1, "verify_capacity": 0, "branches": 4}, []),
        ({"http_origins": "*", "model_name": "m"}, ["http_origins has", "model_name has"]),
        (
            {"http_hosts": "a", "mode": "sd", "branches": 2},
            ["http_hosts has", "branches has no effect without mode pearl or auto"],
        ),
        ({"extra_drafts": 2, "verify_capacity": 9}, ["extra_drafts has", "verify_capacity has"]),
        ({"extra_drafts": 2, "draft_policy": "tetris", "branches": 2, "mode": "pearl"}, []),
        ({"http": "127.0.0.1:1", "http_origins": "*", "http_hosts": "a", "model_name": "m"}, []),
        ({"metrics": "127.0.0.1:1", "http_hosts": "a", "branches": 2, "allow_configure": True}, []),
    ],
)
def test_what_is_given_and_has_no_effect_is_named(flags, lines):
    told = unused(load_settings(flags))
    assert len(told) == len(lines)
    assert all(line.startswith(start) for line, start in zip(told, lines, strict=True))


def test_a_prompt_chunk_that_nobody_gave_shrinks_to_the_context():
    assert load_settings({"max_model_len": 128}).prefill_chunk == 128
    assert load_settings({"max_model_len": 4096}).prefill_chunk == load_settings().prefill_chunk == 256


@pytest.mark.parametrize(("content", "limit"), [("mode = ", "not valid TOML"), (None, "cannot be read: No such file")])
def test_a_file_that_is_no_toml_is_named(tmp_path, content, limit):
    file = tmp_path / "m.toml"
    if content is not None:
        file.write_text(content)
    error = rejected({}, file)
    assert str(file) in str(error)
    assert limit in str(error)


def parsed(kind: type[SharedSettings], argv: list[str]) -> dict:
    """What a command with the flags of `kind` is given."""
    seen = {}
    parse = click.command()(settings_flags(kind)(lambda **values: seen.update(values)))
    parse.main(argv, standalone_mode=False)
    return seen


def test_settings_survive_the_way_through_the_command_line():
    settings = load_settings(
        {"target": "/t", "draft": "/d", "mode": "sd", "max_model_len": 1024, "allow_configure": True}
    )
    assert load_settings(parsed(Settings, to_flags(settings))) == settings


EVERY_SHARED = {
    "draft_method": "ngram",
    "lookup": False,
    "dtype": "bfloat16",
    "kernels": "torch",
    "max_model_len": 512,
    "num_blocks": 99,
    "block_size": 8,
    "log_format": "json",
    "log_level": "debug",
    "worker_tls": Path("/certs"),
}


@pytest.mark.parametrize("role", Role)
def test_a_worker_is_told_every_setting_that_it_shares_with_the_service(role):
    assert EVERY_SHARED.keys() == SharedSettings.model_fields.keys()
    shares = {"target_memory_share": 0.75, "draft_memory_share": 0.125}
    devices = {"target_device": "cpu:1", "draft_device": "cpu:0,2"}
    settings = Settings.model_validate({"target": Path("/t"), **devices, **shares, **EVERY_SHARED})
    there = settings.for_worker(role, "127.0.0.1:7000")
    assert {name: getattr(there, name) for name in EVERY_SHARED} == EVERY_SHARED
    told = settings.for_worker(role, "unix:/w.sock")
    assert load_worker_settings(parsed(WorkerSettings, to_flags(told))) == told
    assert told == there.model_copy(update={"listen": "unix:/w.sock", "worker_tls": None}), "TLS is for HOST:PORT"
    assert (told.role, told.model, told.listen) == (role, Path("/t"), "unix:/w.sock")
    assert told.memory_share == (0.75 if role is Role.VERIFIER else 0.125)
    assert told.device == ("cpu:1" if role is Role.VERIFIER else "cpu:0,2")


def test_a_worker_is_told_how_many_requests_it_may_meet_unless_a_client_may_change_that():
    for flags, max_requests in (({"max_batch_size": 3}, 12), ({"allow_configure": True}, None)):
        settings = load_settings({"target": "/t", "draft_method": "ngram", **flags})
        assert settings.for_worker(Role.VERIFIER, "unix:/w.sock").max_requests == max_requests


def test_each_worker_runs_its_own_model():
    settings = load_settings({"target": "/t", "draft": "/d"})
    assert settings.for_worker(Role.VERIFIER, "unix:/w").model == Path("/t")
    assert settings.for_worker(Role.DRAFTER, "unix:/w").model == Path("/d")
    assert settings.for_worker(Role.DRAFTER, "unix:/w").target is None


def test_with_a_head_each_worker_is_told_where_the_others_folder_is():
    settings = load_settings({"target": "/t", "draft": "/d", "draft_method": "eagle"})
    drafter = settings.for_worker(Role.DRAFTER, "unix:/w")
    assert (drafter.model, drafter.target) == (Path("/d"), Path("/t"))
    assert load_worker_settings(parsed(WorkerSettings, to_flags(drafter))) == drafter
    verifier = settings.for_worker(Role.VERIFIER, "unix:/w")
    assert (verifier.target, verifier.head, drafter.head) == (None, Path("/d"), None)
    assert load_settings({"target": "/t", "draft": "/d"}).for_worker(Role.VERIFIER, "unix:/w").head is None


@pytest.mark.parametrize(
    ("flags", "own"),
    [
        ({}, (Role.VERIFIER, Role.DRAFTER)),
        ({"mode": "ar"}, (Role.VERIFIER,)),
        ({"target_address": "unix:/t"}, (Role.DRAFTER,)),
        ({"target_address": "unix:/t", "draft_address": "unix:/d"}, ()),
    ],
)
def test_a_service_starts_the_workers_that_do_not_run_yet(flags, own):
    assert load_settings(flags).own_workers == own


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({"device": "tpu", "listen": "0.0.0.0:1"}, ["device", "listen"]),
        ({"num_blocks": 1, "dtype": "int4", "device": "cpu:"}, ["dtype", "num_blocks", "device"]),
        ({"model": None}, ["model"]),
        ({"max_batch_size": 2}, ["max_batch_size"]),
    ],
)
def test_every_problem_of_a_worker_s_settings_is_told_at_once(flags, fields):
    with pytest.raises(ConfigErrors) as caught:
        load_worker_settings({"role": "verifier", "model": "/m", "listen": "unix:/w", **flags})
    assert fields_of(caught.value) == fields


def test_a_tilde_is_the_home_folder_wherever_a_path_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.toml").write_text('target = "~/t"\n')
    settings = load_settings({"draft": Path("~/d"), "listen": "unix:~/s.sock"}, tmp_path / "m.toml")
    assert (settings.target, settings.draft) == (tmp_path / "t", tmp_path / "d")
    assert settings.listen_address.path == tmp_path / "s.sock"
    assert str(tmp_path / "t") in to_flags(settings), "the processes that are started get the folder itself"
    said = CliRunner().invoke(command, ["--config=~/m.toml", "--mode", "ar", "--check"])
    assert f"'{tmp_path}/t': no such folder" in str(said.exception)


def test_a_tilde_that_is_nobodys_home_stays_as_it_is():
    settings = load_settings({"target": "~nobody-of-that-name/t", "mode": "ar", "listen": "unix:/~nobody/s.sock"})
    assert settings.target == Path("~nobody-of-that-name/t")


def test_help_has_every_setting_with_its_one_text():
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=200).output.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert " ".join(str(field.description).split()[:5]) in text


@dataclasses.dataclass(frozen=True)
class BadStart:
    arguments: list[str]
    message: str


BAD_STARTS = [
    BadStart(["--target", "{empty}", "--draft", "{missing}"], "no such folder"),
    BadStart(["--target", "{empty}", "--draft-method", "ngram"], "no config.json"),
    BadStart(["--target", "{missing}", "--draft-len", "99"], "draft_len is 99: must be auto or an integer in [0, 16]"),
    BadStart(["--mode", "warp"], "mode is 'warp': must be one of auto, ar, sd, minedraft, pearl"),
    BadStart(["--max-batch-size", "many"], "max_batch_size is 'many': must be a valid integer"),
    BadStart(["--no-such-flag"], "--no-such-flag: there is no such flag"),
    BadStart(["--max-batch-size"], "Option '--max-batch-size' requires an argument"),
    BadStart(["-xy"], "No such option"),
    BadStart(["--config", "{bad_toml}"], "unknown setting"),
    BadStart(["--check", "--target-device", "cpu:4000"], "core 4000 is not available"),
    BadStart(["--check", "--listen", "unix:{file}"], "the file there is not a socket"),
    BadStart(["--check", "--trace", "{empty}"], "cannot be written: a folder"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_STARTS, ids=lambda case: case.message[:30])
def test_a_bad_start_ends_with_78_and_a_reason_before_torch_is_imported(case, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "bad.toml").write_text("warp = 9\n")
    names = {name: str(tmp_path / name) for name in ("empty", "missing", "file")} | {
        "bad_toml": str(tmp_path / "bad.toml")
    }
    program = (
        "import sys\nfrom minedraft.cli.launch import main\n"
        "try:\n    main()\nfinally:\n    print(*{'torch', 'transformers', 'grpc'} & set(sys.modules))"
    )
    arguments = [argument.format(**names) for argument in case.arguments]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CONFIG
    assert case.message in " ".join(done.stderr.split())
    assert done.stdout.strip() == ""
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("module", ["minedraft.cli.launch", "minedraft.server.command", "minedraft_workers.main"])
def test_all_that_is_wrong_with_the_flags_is_told_in_one_go(module):
    command = importlib.import_module(module).command
    program = ["verifier", "--model", "/m", "--listen", "unix:/w"] if "worker" in module else []
    wrong = ["--max-model-len", "x", "--block-sise=16", "--dtype", "int3", "--num-blocks", "1", "--verbos", "3"]
    with pytest.raises(ConfigErrors) as caught:
        command.main([*program, *wrong], prog_name="p", standalone_mode=False)
    assert [(error.field, error.value) for error in caught.value.errors] == [
        ("--block-sise", "None"),
        ("--verbos", "None"),
        ("dtype", "'int3'"),
        ("max_model_len", "'x'"),
        ("num_blocks", "1"),
    ]
    assert str(caught.value.errors[0]) == "--block-sise: there is no such flag; did you mean --block-size"


@pytest.mark.parametrize(
    ("metrics", "limit"),
    [
        ("0.0.0.0:9090", "only at an address of this host"),
        ("unix:/run/m.sock", "must be HOST:PORT"),
        ("9090", "must be unix:PATH or host:port"),
    ],
)
def test_metrics_are_served_to_this_host_alone(metrics, limit):
    error = rejected({"metrics": metrics})
    assert fields_of(error) == ["metrics"]
    assert limit in str(error)
    load_settings({"metrics": "127.0.0.1:9090"})
