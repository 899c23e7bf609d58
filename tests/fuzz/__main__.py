"""Coverage-guided fuzzing of every decoder: `scripts/fuzz --seconds 60`. Ends with 1 at the first error without a type.

The first byte of an input chooses the decoder, the rest is the message. The inputs to begin with are valid messages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder of inputs, which grows (default: a temporary one)")
    given = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("scripts/fuzz: needs atheris: pip install -e '.[fuzz]'")
    with atheris.instrument_imports(include=["minedraft"]):
        from tests.fuzz.decoders import DECODERS

    from google.protobuf.message import DecodeError

    from minedraft.errors import MineDraftError

    def take(data: bytes) -> None:
        if data:
            decoder = DECODERS[data[0] % len(DECODERS)]
            with suppress(MineDraftError, DecodeError):
                decoder.decode(decoder.kind.FromString(data[1:]))

    with tempfile.TemporaryDirectory() as temporary:
        corpus = given.corpus or Path(temporary)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, decoder in enumerate(DECODERS):
            for index, valid in enumerate(decoder.valid):
                (corpus / f"valid-{decoder.name}-{index}").write_bytes(bytes([number]) + valid.SerializeToString())
        options = [
            f"-max_total_time={given.seconds}",
            "-max_len=4096",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={corpus}/",
        ]
        atheris.Setup([sys.argv[0], str(corpus), *options], take)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
