"""`minedraft-worker drafter|verifier`: checks everything that can be checked first, then loads and serves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minedraft.address import Address
from minedraft.device import Device
from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, EXIT_OK, ConfigError, MineDraftError
from minedraft.models.folder import FolderInfo, check_model_folder
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.process.claim import ListenClaim
from minedraft.process.parent import exit_with_parent
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role, WorkerInfo
from minedraft_workers.device import pin

if TYPE_CHECKING:
    from minedraft_workers.drafter import DrafterActor
    from minedraft_workers.execution.executor import Executor
    from minedraft_workers.verifier import VerifierActor


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the command line says, checked; see the options' help."""

    role: Role
    folder: FolderInfo
    device: Device
    address: Address
    dtype: str
    max_model_len: int | None
    num_blocks: int | None
    block_size: int
    draft_method: DraftMethod | None

    @property
    def has_model(self) -> bool:
        return self.role is Role.VERIFIER or self.draft_method is DraftMethod.MODEL


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.option("--model", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Model folder.")
@click.option("--listen", required=True, metavar="ADDR", help="unix:PATH or HOST:PORT to serve the scheduler on.")
@click.option(
    "--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cpu:CORE, cpu:FIRST-LAST or cuda:N."
)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option(
    "--max-model-len",
    type=click.IntRange(16, 1 << 20),
    help="Longest sequence in tokens; the model's limit by default.",
)
@click.option("--num-blocks", type=click.IntRange(1, 1 << 24), help="KV blocks; by default what memory allows.")
@click.option("--block-size", type=click.IntRange(1, 256), default=16, show_default=True, help="Tokens in a KV block.")
@click.option(
    "--draft-method",
    type=click.Choice([method.value for method in DraftMethod]),
    default=DraftMethod.MODEL.value,
    show_default=True,
    help="Drafter only. ngram proposes from the prompt itself and loads no weights; DIR is then the target's.",
)
@click.option(
    "--insecure-public",
    is_flag=True,
    help="Listen beyond this host though nothing protects it: no encryption, no login.",
)
@click.option("--check", is_flag=True, help="Look at settings and model folder, without the weights, then exit.")
@click.option(
    "--exit-with-parent", "parent_pid", type=int, metavar="PID", help="End at once when process PID, the parent, ends."
)
def command(
    role: str,
    model: Path,
    listen: str,
    device: str,
    dtype: str,
    max_model_len: int | None,
    num_blocks: int | None,
    block_size: int,
    draft_method: str,
    insecure_public: bool,
    check: bool,
    parent_pid: int | None,
) -> int:
    """Run one worker process: the drafter (draft model) or the verifier (target model)."""
    if parent_pid is not None:
        exit_with_parent(parent_pid)
    os.umask(0o077)  # the socket is for this user only
    address = Address.parse(listen, "listen")
    if not address.is_local and not insecure_public:
        raise ConfigError(
            "listen", listen, "other hosts could connect, unprotected; --insecure-public says that is meant"
        )
    folder = check_model_folder(model, "model")
    settings = WorkerSettings(
        role=Role(role),
        folder=folder,
        device=Device.parse(device, "device").here("device"),
        address=address,
        dtype=dtype,
        max_model_len=_cap_context(Role(role), folder, max_model_len, num_blocks, block_size),
        num_blocks=num_blocks,
        block_size=block_size,
        draft_method=DraftMethod(draft_method) if role == Role.DRAFTER.value else None,
    )
    if check:
        return _check(settings)
    with ListenClaim(address):
        return _run(settings)


def main() -> None:
    """Entry point. Exit codes: 0 stopped by a signal, 70 internal error, 78 configuration."""
    role = next((argument for argument in sys.argv[1:] if argument in set(Role)), "worker")
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s.%(msecs)03d %(levelname)s minedraft.{role} %(message)s",
        datefmt="%H:%M:%S",
    )
    # While weights load nothing needs to be put in order: the default action ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logger = logging.getLogger("minedraft.worker")
    try:
        code = command.main(standalone_mode=False)
    except click.exceptions.Exit as error:  # --help
        code = error.exit_code
    except click.ClickException as error:
        logger.error("%s", error.format_message())
        code = EXIT_CONFIG
    except MineDraftError as error:
        logger.error("%s", error)
        code = error.exit_code
    except Exception as error:
        logger.critical("%s: %s", type(error).__name__, error, exc_info=True)
        code = EXIT_INTERNAL
    logging.shutdown()
    # Not sys.exit: the device thread may still be inside a forward, which nothing can interrupt.
    os._exit(int(code or 0))


def _check(settings: WorkerSettings) -> int:
    if settings.has_model:
        from minedraft_workers.execution.loading import check_model

        check_model(settings.folder.path)
    return EXIT_OK


def _run(settings: WorkerSettings) -> int:
    logger = logging.getLogger("minedraft.worker")
    start_s = time.monotonic()
    pin(settings.device)
    logger.info("torch imported, on %s, in %.1f s", settings.device, time.monotonic() - start_s)
    actor = _load(settings, logger)
    return asyncio.run(_serve(settings, actor, logger, start_s))


def _load(settings: WorkerSettings, logger: logging.Logger) -> DrafterActor | VerifierActor:
    from minedraft_workers.drafter import DrafterActor

    if not settings.has_model:
        from minedraft_workers.proposers.ngram import NgramProposer

        return DrafterActor(NgramProposer(), _make_info(settings, None))
    from minedraft_workers.execution.executor import Executor
    from minedraft_workers.proposers.draft_model import ModelProposer
    from minedraft_workers.verifier import VerifierActor

    start_s = time.monotonic()
    executor = Executor.load(
        settings.folder.path,
        device=settings.device,
        dtype=settings.dtype,
        num_blocks=settings.num_blocks,
        block_size=settings.block_size,
        max_model_len=settings.max_model_len,
    )
    logger.info(
        "%s loaded as %s (%.0f MB) in %.1f s",
        executor.model_name,
        executor.dtype_name,
        executor.weights_bytes / 1e6,
        time.monotonic() - start_s,
    )
    info = _make_info(settings, executor)
    if settings.role is Role.VERIFIER:
        _check_kv_memory(settings, executor, logger)
        return VerifierActor(executor, info)
    return DrafterActor(ModelProposer(executor), info)


async def _serve(
    settings: WorkerSettings, actor: DrafterActor | VerifierActor, logger: logging.Logger, start_s: float
) -> int:
    from minedraft_workers.drafter import DrafterActor
    from minedraft_workers.runtime import WorkerRuntime
    from minedraft_workers.server import serve
    from minedraft_workers.servicer import drafter_handler, verifier_handler

    runtime = WorkerRuntime(actor)
    handler = drafter_handler(actor, runtime) if isinstance(actor, DrafterActor) else verifier_handler(actor, runtime)
    info = actor.info

    def on_ready() -> None:
        logger.info(
            "ready on %s after %.1f s: %s, %s, %d KV blocks of %d tokens, context %d",
            settings.address,
            time.monotonic() - start_s,
            info.model_name,
            info.device,
            info.num_blocks,
            info.block_size,
            info.max_model_len,
        )

    return await serve(runtime, handler, settings.address, on_ready=on_ready)


def _make_info(settings: WorkerSettings, executor: Executor | None) -> WorkerInfo:
    folder = settings.folder
    return WorkerInfo(
        role=settings.role,
        epoch=0,  # the runtime counts them
        protocol_version=PROTOCOL_VERSION,
        vocab_size=executor.vocab_size if executor else folder.vocab_size,
        vocab_fingerprint=vocab_fingerprint(folder.path),
        num_blocks=executor.num_blocks if executor else 0,
        block_size=executor.block_size if executor else settings.block_size,
        max_model_len=executor.max_model_len if executor else settings.max_model_len or folder.max_context,
        model_name=executor.model_name if executor else "ngram",
        device=str(settings.device),
        dtype=executor.dtype_name if executor else "none",
        draft_method=settings.draft_method,
        weights_bytes=executor.weights_bytes if executor else 0,
    )


def _cap_context(
    role: Role, folder: FolderInfo, max_model_len: int | None, num_blocks: int | None, block_size: int
) -> int | None:
    """The drafter serves what it can of a longer context (near its end nothing is drafted); the
    verifier must serve all of it."""
    limit, why = folder.max_context, f"the context of {folder.name} is {folder.max_context} tokens"
    if num_blocks is not None and num_blocks * block_size < limit:
        limit = num_blocks * block_size
        why = f"num_blocks {num_blocks} of block_size {block_size} hold {limit} tokens"
    if max_model_len is None or max_model_len <= limit:
        return max_model_len
    if role is Role.DRAFTER:
        return limit
    raise ConfigError("max_model_len", max_model_len, why)


def _check_kv_memory(settings: WorkerSettings, executor: Executor, logger: logging.Logger) -> None:
    """A context that was asked for must fit the KV memory; the model's own shrinks to it, and that is said."""
    holds = f"the KV memory holds {executor.num_blocks * executor.block_size} tokens"
    if settings.max_model_len is not None and executor.max_model_len < settings.max_model_len:
        raise ConfigError("max_model_len", settings.max_model_len, holds)
    if settings.max_model_len is None and executor.max_model_len < settings.folder.max_context:
        logger.warning(
            "the context is %d tokens, less than the model's %d: %s",
            executor.max_model_len,
            settings.folder.max_context,
            holds,
        )


if __name__ == "__main__":
    main()
