"""The one way to load a base, for serving and training alike, and the same model without its weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from graftwork.adapters.base.info import BaseInfo
from graftwork.adapters.errors import ConfigurationError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


SCALAR_HEAD: Final = "score.weight"
"""The weight of a scalar head, in transformers' models for sequence classification."""


def load_model(info: BaseInfo, *, dtype: str, device: str, scalar_head: bool = False) -> PreTrainedModel:
    """Load the base with transformers, in eval mode: safetensors only, nothing downloaded, no code from the base.

    Args:
        info: The base.
        dtype: torch's name of it: ``bfloat16`` or ``float32``.
        device: torch's name of it.
        scalar_head: Whether it gets a scalar head, for a reward model, in place of the vocabulary's. The head is
            random, by torch's generator, and float32.

    Raises:
        ConfigurationError: transformers cannot load it, or the files lack a weight that the architecture has, which
            transformers would initialize at random.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind, more = (AutoModelForSequenceClassification, {"num_labels": 1}) if scalar_head else (AutoModelForCausalLM, {})
    with transformers_reads(Path(info.path), warns=not scalar_head):
        model, report = kind.from_pretrained(
            info.path,
            **more,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    new = {SCALAR_HEAD} if scalar_head else set()
    wrong = sorted({str(key) for key in (*report["missing_keys"], *report["mismatched_keys"])} - new)
    if wrong:
        raise ConfigurationError(
            f"{info.path} lacks {len(wrong)} weights that {info.architecture} has, or has them in another shape, "
            f"first {wrong[0]}. Fetch the base again."
        )
    if scalar_head:
        model.score.float()
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def skeleton(folder: Path) -> tuple[PreTrainedModel, PretrainedConfig]:
    """The model without its weights (on torch's meta device), and its text configuration.

    Raises:
        ConfigurationError: transformers cannot load it, or it is quantized.
    """
    import torch

    with transformers_reads(folder):
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


#: Building a model sets torch's default dtype for the whole process: two threads at once could leave the wrong one.
_one_at_a_time = threading.RLock()


@contextmanager
def transformers_reads(folder: Path, *, warns: bool = True) -> Iterator[None]:
    """A context for loading ``folder`` with transformers: progress bars are off, and one thread at a time is in it.

    Args:
        folder: Of the base.
        warns: Whether transformers' warnings are shown; it warns of a head that the base does not have.

    Raises:
        ConfigurationError: transformers cannot load it.
    """
    with _one_at_a_time, _explained(folder, warns):
        yield


@contextmanager
def _explained(folder: Path, warns: bool) -> Iterator[None]:
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warns:
        logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigurationError(
            f"transformers cannot load {folder}: {first_line(error)} Choose a causal language model that this release "
            "of transformers knows without code of the model's own."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
