"""Hugging Face's causal language model as the backends call it: a decoder, and a head behind it.

Shapes: T tokens in one packed row, R of them that reach the head, V vocabulary, S whose hidden states are wanted, H.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graftwork.server.engine.batch import ForwardOutput


class CausalLM:
    """A model that computes logits at some tokens and returns the hidden states of others.

    Args:
        model: HF's, its layers replaced by ``graft_onto``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
        self._vocab_size: int = model.get_output_embeddings().out_features  # type: ignore[operator]

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: Any,
        *,
        logits_at: Tensor | None = None,
        hidden_at: Tensor | None = None,
    ) -> ForwardOutput:
        """Run the model once; without a token at the head, the head not at all.

        Args:
            tokens: [T] token ids.
            positions: [T] their places in their sequences.
            attention: What HF's modules pass on to this server's attention.
            logits_at: [R] tokens whose logits are computed; ``None``: all.
            hidden_at: [S] tokens whose hidden states are returned.
        """
        inputs: dict[str, Any] = {
            "input_ids": tokens[None],
            "position_ids": positions[None],
            "use_cache": False,
            "graft_attention": attention,
        }
        if hidden_at is not None and not len(hidden_at):
            hidden_at = None
        if logits_at is not None and not len(logits_at):
            states: Tensor = self._decoder(**inputs).last_hidden_state[0]
            logits = states.new_empty(0, self._vocab_size)
            return ForwardOutput(logits, None if hidden_at is None else states[hidden_at])
        inputs["logits_to_keep"] = 0 if logits_at is None else logits_at
        if hidden_at is None:
            return ForwardOutput(self._model(**inputs).logits[0])
        seen: list[Tensor] = []
        # What lies between decoder and head differs from model to model: the whole model runs, its decoder is watched.
        watch = self._decoder.register_forward_hook(lambda *ran: seen.append(ran[-1].last_hidden_state[0]))
        try:
            logits = self._model(**inputs).logits[0]
        finally:
            watch.remove()
        return ForwardOutput(logits, seen[0][hidden_at])
