"""The tokenizer and the chat template of one base, for serving and training alike.

Reads ``tokenizer.json`` and its neighbours with ``tokenizers`` and jinja2 only, so that a process without torch
stays light. Agrees token for token with transformers' ``apply_chat_template``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from tokenizers import AddedToken, Tokenizer

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.prompts.detokenizer import IncrementalDetokenizer, TokenBytes
from graftwork.adapters.prompts.messages import check_unicode, read_conversation
from graftwork.adapters.prompts.reading import read_json, read_text
from graftwork.adapters.prompts.template import compile_template, read_chat_template
from graftwork.adapters.prompts.tool_calls import ToolCallFormat, find_tool_call_format, write_as_text

#: A text beyond it is tokenized without holding up other threads, which costs a little more for each call.
_LONG_CHARS = 4096

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Prompts:
    """The tokenizer and the chat template of one base.

    Args:
        folder: The base's.
        now: The time for templates that ask for the date; that of each call if ``None``, as in serving. Training fixes
            it, since an interrupted run must find the same tokens after midnight.

    Attributes:
        chat_template: Its source; ``None`` if the base has none.
        vocab_size: The largest token id + 1.
        bos_token_id: The beginning-of-sequence token, if there is one.
        eos_token_ids: Tokens that end an answer.

    Raises:
        ConfigurationError: Files of the folder are missing or broken, or the tokenizer cannot be streamed.
    """

    def __init__(self, folder: Path, *, now: datetime | None = None) -> None:
        source = read_text(folder / "tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # tokenizers raises nothing more precise
            raise ConfigurationError(
                f"{folder / 'tokenizer.json'} cannot be read as a tokenizer: {error}. Fetch the base again."
            ) from error
        # A tokenizer.json may contain the truncation of its last use: a prompt must never be cut silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

        self._named_tokens = _named_tokens(folder)
        self._special_ids = _special_ids(self._tokenizer)
        named_ids = {token: self._tokenizer.token_to_id(token) for token in self._named_tokens.values()}
        plain = [token for token, known in named_ids.items() if known is not None and known not in self._special_ids]
        self._tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in plain])
        self._special_ids = _special_ids(self._tokenizer)
        self._pieces = TokenBytes(self._tokenizer, json.loads(source).get("decoder"))

        self.chat_template: str | None = read_chat_template(folder)
        self._template = None if self.chat_template is None else compile_template(self.chat_template, folder, now=now)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        self._longest_token = max(map(len, vocabulary), default=1)
        self.bos_token_id: int | None = self._named_id("bos_token")
        self.eos_token_ids: frozenset[int] = self._eos_token_ids(folder)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        max_length: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the base. The template places every special token, so none is added.

        Args:
            messages: OpenAI's: ``role`` and ``content``, the content a string or a list of text parts; the assistant's
                may have ``tool_calls``, and ``tool`` is a role.
            tools: OpenAI's, which the answer may call.
            add_generation_prompt: Ends where an answer begins.
            continue_final_message: Ends where the text of the last message does, which the answer goes on from.
            template_kwargs: What else the template may ask for: ``enable_thinking``.
            max_length: Tokens. What cannot fit, whatever its tokens are, is refused before it is tokenized.

        Raises:
            InvalidRequest: a message is wrong, which is named; the base has no chat template; the text is too long.
        """
        text = self.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )
        self._check_length(text, max_length, "messages")
        return self._encode(text, add_special_tokens=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation. See ``chat``."""
        if not messages:
            raise InvalidRequest("messages is empty. Send at least one message.", param="messages")
        conversation: Sequence[Mapping[str, Any]] = read_conversation(messages)
        has_tools = bool(tools) or any(m["role"] == "tool" or "tool_calls" in m for m in conversation)
        if has_tools and self._template is not None and not self.tool_call_format.native:
            conversation, tools = write_as_text(conversation, tools, system=self._takes_system), ()
        text = self._render(
            conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            template_kwargs=template_kwargs,
        )
        return _cut_behind(text, conversation[-1]) if continue_final_message else text

    @cached_property
    def tool_call_format(self) -> ToolCallFormat:
        """How this base writes tool calls."""
        ends = [token for token_id in self.eos_token_ids if (token := self._tokenizer.id_to_token(token_id))]
        added = self._tokenizer.get_added_tokens_decoder()
        return find_tool_call_format(self._render, ends).with_tokens({added[id].content: id for id in added})

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the chat template shows a system message."""
        conversation = [{"role": "system", "content": "SystemProbe"}, {"role": "user", "content": "UserProbe"}]
        try:
            return "SystemProbe" in self._render(conversation)
        except InvalidRequest:
            return False

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        if self._template is None:
            raise InvalidRequest(
                "This base has no chat template, so it cannot take messages. Send the whole prompt to /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        is_system = "developer" not in (self.chat_template or "")
        try:
            return self._template.render(
                messages=[
                    {**message, "role": "system"} if is_system and message["role"] == "developer" else message
                    for message in messages
                ],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**(template_kwargs or {}), **self._named_tokens},
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            # A template is a program that runs on the user's messages and may fail in any way.
            raise InvalidRequest(
                f"The base's chat template refuses these messages: {error}. Check the roles and their order.",
                param="messages",
            ) from error

    def encode(self, text: str, *, max_length: int | None = None, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a plain prompt.

        Args:
            add_special_tokens: Those that the tokenizer's own post-processor adds.
            max_length: Tokens. What cannot fit, whatever its tokens are, is refused before it is tokenized.

        Raises:
            InvalidRequest: the text is too long, or no text.
        """
        self._check_length(text, max_length, "prompt")
        return self._encode(check_unicode(text, "prompt"), add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these tokens, equal to that of ``stream``. Unknown ids have no text."""
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return stream.push(token_ids) + stream.flush()

    def stream(
        self, *, skip_special_tokens: bool = True, visible: Collection[int] = frozenset()
    ) -> IncrementalDetokenizer:
        """A new incremental detokenizer for one answer. The special tokens of ``visible`` are written all the same."""
        skipped = self._special_ids.difference(visible) if skip_special_tokens else frozenset()
        return IncrementalDetokenizer(self._pieces, skipped)

    def special_tokens_in(self, text: str) -> list[str]:
        """The special tokens that stand written out in a text, in order. In messages and prompts they are read as these
        tokens and not as text, as in transformers and vLLM."""
        return self._special_texts.findall(text)

    def ends_answer(self, token: str) -> bool:
        """Whether a special token, as text, ends an answer."""
        return self._tokenizer.token_to_id(token) in self.eos_token_ids

    @cached_property
    def _special_texts(self) -> re.Pattern[str]:
        decoder = self._tokenizer.get_added_tokens_decoder()
        texts = sorted((decoder[id].content for id in self._special_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token inside a text; empty for an unknown id."""
        return self._pieces.inside(token_id)

    def token_text(self, token_id: int) -> str:
        r"""The token as text, for logprobs.

        One that is no text by itself is written ``bytes:\xe2\x82``, as OpenAI does.
        """
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _check_length(self, text: str, max_length: int | None, param: str) -> None:
        if max_length is not None and len(text) > self._longest_token * max_length:
            raise InvalidRequest(
                f"the prompt has {len(text)} characters, more than this model's context of {max_length} tokens can "
                "hold: shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) <= _LONG_CHARS:
            short: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            return short
        # Of the tokenizer's ways only this one lets other threads run meanwhile.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _named_id(self, name: str) -> int | None:
        token = self._named_tokens.get(name)
        token_id: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return token_id

    def _eos_token_ids(self, folder: Path) -> frozenset[int]:
        """End tokens from all files: many models name their end of turn in only one of them."""
        config = read_json(folder / "config.json")
        sources = (read_json(folder / "generation_config.json"), config, config.get("text_config") or {})
        ids = {token_id for source in sources for token_id in _as_list(source.get("eos_token_id"))}
        named = self._named_id("eos_token")
        return frozenset(ids if named is None else ids | {named})


def _cut_behind(text: str, message: Mapping[str, Any]) -> str:
    """A rendered conversation up to the end of its last message's text, as transformers cuts it."""
    content = message.get("content") or ""
    said: str = content if isinstance(content, str) else content[-1]["text"]
    begin = text.rfind(said.strip())
    if not said.strip() or begin < 0:
        raise InvalidRequest(
            "The last message cannot be continued: it has no text, or the base's chat template changes it.",
            param="messages",
        )
    whole = said.lstrip()
    # Many templates strip messages: then the text ends where the stripped one does.
    return text[: begin + len(whole if text.startswith(whole, begin) else said.strip())]


def _named_tokens(folder: Path) -> dict[str, str]:
    """``bos_token`` and the like, as templates see them. The newer file wins over ``special_tokens_map.json``."""
    merged = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    tokens = {name: merged.get(name) for name in _NAMED_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(known for known, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
