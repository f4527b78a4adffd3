"""Files of torch.save, read without running any code of theirs.

torch's weights-only unpickler calls nothing but what is on its list. Trainers store more beside the
weights: their settings, paths, NumPy numbers. For the names of these a stand-in is put on the list,
which takes whatever it is given and does nothing: no module that a file names is imported.
"""

from __future__ import annotations

import re
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from deitctl.errors import ModelError

OBJECTS = (
    "argparse.Namespace",  # deit's main.py, timm's train.py, DINO, MAE, MoCo v3: `args`
    "types.SimpleNamespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta", "timezone")),
    # A metric that was NumPy's.
    *(
        f"numpy.{name}"
        for core in ("core", "_core")
        for name in (f"{core}.multiarray.scalar", f"{core}.multiarray._reconstruct")
    ),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{kind}{bits}" for kind in ("float", "int", "uint") for bits in (16, 32, 64)),
    # OmegaConf (Hydra): `cfg`, `hyper_parameters`.
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Integer", "Float", "String", "Boolean", "Bytes", "Path", "Enum")
    ),
    "typing.Any",
    # MMPretrain: `message_hub`.
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "torch.torch_version.TorchVersion",
    # What a defaultdict makes.
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
)
"""Names of classes for which an object that does nothing is put."""
NUMPY_ARRAYS = (
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
"""Those of arrays."""

DICTIONARIES = (
    "collections.defaultdict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Names of dictionaries, which become plain ones."""

_LOCK = threading.Lock()
"""torch's list is the process's: a reader that ends would take it from another that has not."""


class StandIn:
    """An object of a pickle whose class is not imported; `state` is what was stored of it."""

    state: Any = None

    def __new__(cls, *_: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DictionaryStandIn:
    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


@lru_cache(maxsize=1)
def _make_stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return a class for each name, called as the name: messages can say what there was."""
    return [
        (type(name, (base,), {}), name)
        for names, base in ((OBJECTS, StandIn), (DICTIONARIES, _DictionaryStandIn))
        for name in names
    ]


def load_pickle(path: Path) -> Any:
    """Return what torch.save wrote, with stand-ins for the objects of trainers.

    Raises:
        ModelError: it names a class or function that is not on the lists.
        ValueError: it is a decompression bomb.
        OSError, RuntimeError, EOFError, KeyError, MemoryError: it is damaged.
    """
    # Before torch reads it: torch.save stores its members uncompressed, so compression is a bomb's.
    _require_uncompressed(path)
    _require_checksums(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of damaged pickles before it fails
        try:
            # Opened here: torch goes by the suffix, and .safetensors may be any file's.
            with (
                path.open("rb") as file,
                _LOCK,
                torch.serialization.safe_globals(_make_stand_ins()),
            ):
                # weights_only is the default since torch 2.6; stated, because nothing else keeps
                # code from running.
                return torch.load(file, map_location="cpu", weights_only=True)
        except (MemoryError, OSError, RuntimeError, EOFError, KeyError, ValueError):
            raise
        except Exception as error:  # pickle's errors for what weights_only refuses
            raise _refuse(path, str(error)) from error


def _require_uncompressed(path: Path) -> None:
    """Refuse a zip with compressed or overlapping members, as a decompression bomb has."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is a compressed archive")
    # Overlapping members name the same bytes many times.
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("it claims to hold more bytes than it has")


def _require_checksums(path: Path) -> None:
    """Refuse a zip whose members do not have their CRC-32, which torch writes and does not compare."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        # Where torch.save was set to compute none, all are 0.
        if not any(member.CRC for member in archive.infolist()):
            return
        try:
            damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from error
    if damaged is not None:
        raise ModelError(
            f"{path} is damaged: the checksum of {damaged[:80]!r} in it does not match.",
            "Copy or download it again.",
        )


def _refuse(path: Path, reason: str) -> ModelError:
    """Return the error for a pickle that the unpickler refused, with the class if it named one."""
    if operand := re.search(r"Unsupported operand (\d+)", reason):
        return ModelError(
            f"{path} is pickled in a way that is not read (operand {operand[1]}: "
            "pickle_protocol=2 is read).",
            "Save it again with torch.save's default protocol.",
        )
    named = re.search(r"GLOBAL ([\w.]+)", reason)
    if named and any(
        name.startswith("torch.nn.modules.") for name in _list_globals(path, named[1])
    ):
        return ModelError(
            f"{path} holds a whole model ({named[1]}), not its weights: reading it could run code.",
            "Where you trust it: torch.save(torch.load(FILE, weights_only=False).state_dict(), "
            "'weights.pth').",
        )
    what = f" ({named[1]})" if named else ""
    return ModelError(
        f"{path} holds more than weights{what} and is not opened: reading it could run code.",
        "Where you trust it, save the weights alone: "
        "torch.save(torch.load(FILE, weights_only=False)['model'], 'weights.pth').",
    )


def _list_globals(path: Path, first: str) -> list[str]:
    """Return the names that torch does not allow by itself, `first` at least."""
    try:
        return [first, *torch.serialization.get_unsafe_globals_in_checkpoint(path)]
    except Exception:  # of older files it knows nothing; this is for a message alone
        return [first]
