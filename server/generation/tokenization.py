"""Tokenizes what is not generated from: inputs of embeddings, and prompts that are only counted.

In threads, a few texts at a time: neither the event loop nor the database nor the prompts of answers wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.experiments.routing import ModelRouter
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.server.bodies import write_json
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.generation import check_token_ids
from graftwork.server.openai.requests.tokenization import MAX_TEXT_CHARS, DetokenizeRequest, TokenizeRequest
from graftwork.server.openai.vocabulary import Vocabulary
from graftwork.server.transport.engine import EngineProtocol, context_length

#: Texts that are tokenized at once; the others wait.
MAX_THREADS = 2

T = TypeVar("T")


class Tokenization:
    """The tokenizer of one server.

    Args:
        base: The base.
        engine: Says how long prompts may be.
        prompts: Encodes prompts and decodes tokens.
        router: Knows which models there are.
    """

    def __init__(self, base: BaseInfo, engine: EngineProtocol, prompts: Prompts, router: ModelRouter) -> None:
        self.base = base
        self.prompts = prompts
        self.vocabulary = Vocabulary(prompts)
        self._engine = engine
        self._router = router
        self._threads = CapacityLimiter(MAX_THREADS)

    @property
    def max_length(self) -> int:
        """Tokens of the context, prompt and answer together."""
        return context_length(self._engine, self.base)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in one of the threads, and return or raise what it does."""
        return await to_thread.run_sync(work, limiter=self._threads)

    async def tokenize(self, body: TokenizeRequest) -> bytes:
        """The tokens of a text or a conversation, as JSON.

        Raises:
            InvalidRequest: The text is too long, or the chat template refuses the messages.
            NotFound: Nothing has the model's name.
        """
        self._check_model(body.model)
        return await self.run(partial(self._tokenized, body))

    async def detokenize(self, body: DetokenizeRequest) -> bytes:
        """The text of token ids, special tokens included, as JSON.

        Raises:
            InvalidRequest: The base lacks one of them.
            NotFound: Nothing has the model's name.
        """
        self._check_model(body.model)
        check_token_ids("tokens", body.tokens, self.base.vocab_size)
        decode = partial(self.prompts.decode, body.tokens, skip_special_tokens=False)
        return write_json({"prompt": await self.run(decode)})

    async def count(self, chat: ChatCompletionRequest) -> int:
        """How many tokens a conversation has, tools included.

        Raises:
            InvalidRequest: It does not fit into the context, or the chat template refuses it.
            NotFound: Nothing has the model's name.
        """
        self._check_model(chat.model)
        options = chat.template_options()
        encode = partial(self.prompts.chat, chat.chat_messages(), **options, max_length=self.max_length)
        return len(await self.run(encode))

    def _check_model(self, model: str | None) -> None:
        if model is not None:
            self._router.resolve_control(model)

    def _tokenized(self, body: TokenizeRequest) -> bytes:
        if (chat := body.chat()) is None:
            assert body.prompt is not None
            ids = self.prompts.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
        else:
            text = self.prompts.render(chat.chat_messages(), **chat.template_options())
            if len(text) > MAX_TEXT_CHARS:
                raise InvalidRequest(
                    f"the conversation has {len(text)} characters, and at most {MAX_TEXT_CHARS} are tokenized in one "
                    "request: send less",
                    param="messages",
                )
            ids = self.prompts.encode(text, add_special_tokens=False)
        return write_json(
            {
                "count": len(ids),
                "max_model_len": self.max_length,
                "tokens": ids,
                "token_strs": list(map(self.vocabulary.text, ids)) if body.return_token_strs else None,
            }
        )
