"""Messages become tokens here, and tokens become text: the one place, for serving and for training alike.

Reads a base's plain folder (``tokenizer.json`` and its small neighbours) with ``tokenizers`` and jinja2 alone, so that
a process that only talks HTTP stays light. Agrees token for token with transformers' ``apply_chat_template``.

Knows nothing of weights, of requests or of how an answer travels.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from graftwork.adapters.errors import ConfigurationError, InvalidRequest

ROLES = ("system", "developer", "user", "assistant")
"""The roles a message may have. A template that does not know ``developer``, the newer word, gets it as ``system``."""

_EXTRA_FIELDS = frozenset({"name", "reasoning_content"})
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Prompts:
    """The tokenizer and the chat template of one base.

    Raises ``ConfigurationError`` when the folder's files are missing, broken, or of a kind that cannot be streamed.
    """

    def __init__(self, folder: Path) -> None:
        source = _read_text(folder / "tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # tokenizers raises nothing more precise
            raise ConfigurationError(
                f"{folder / 'tokenizer.json'} cannot be read as a tokenizer: {error}. Fetch the base again."
            ) from error
        # A tokenizer.json may carry the truncation it was last used with: a prompt must never be cut in silence.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

        self._named_tokens = _named_tokens(folder)
        self._special_ids = _special_ids(self._tokenizer)
        named_ids = {token: self._tokenizer.token_to_id(token) for token in self._named_tokens.values()}
        plain = [token for token, known in named_ids.items() if known is not None and known not in self._special_ids]
        self._tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in plain])
        self._special_ids = _special_ids(self._tokenizer)
        self._pieces = _Pieces(self._tokenizer, json.loads(source).get("decoder"))

        self.chat_template: str | None = read_chat_template(folder)
        self._template = None if self.chat_template is None else _compile(self.chat_template, folder)
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_token_id: int | None = self._named_id("bos_token")
        self.eos_token_ids: frozenset[int] = self._eos_token_ids(folder)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, ready for the base. The template places every special token, so none is added.

        ``messages`` are OpenAI's: ``role`` and ``content``, the content a string or a list of text parts. Raises
        ``InvalidRequest`` naming the message that is wrong, or saying that the base has no chat template.
        """
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The same conversation as text, as the base's chat template writes it."""
        if self._template is None:
            raise InvalidRequest(
                "This base has no chat template, so it cannot take messages. Send the whole prompt to /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        if not messages:
            raise InvalidRequest("messages is empty. Send at least one message.", param="messages")
        conversation = [self._message(index, message) for index, message in enumerate(messages)]
        try:
            return self._template.render(
                messages=conversation,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._named_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            # A template is a program that runs on what the user sent; how it fails is its own affair.
            raise InvalidRequest(
                f"The base's chat template refuses these messages: {error}. Check the roles and their order.",
                param="messages",
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer's own post-processor adds."""
        ids: list[int] = self._tokenizer.encode(_well_formed(text, "prompt")).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these tokens: exactly what ``stream`` gives in pieces. Unknown ids have no text."""
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return stream.push(token_ids) + stream.flush()

    def stream(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A fresh incremental decoder for one answer."""
        return Detokenizer(self._pieces, self._special_ids if skip_special_tokens else frozenset())

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for inside a text; empty for an id that the tokenizer does not know."""
        return self._pieces.inside(token_id)

    def token_text(self, token_id: int) -> str:
        r"""The token for logprobs. One that is no whole text by itself reads ``bytes:\xe2\x82``, as OpenAI has it."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _message(self, index: int, message: Mapping[str, Any]) -> dict[str, str]:
        """One message as the template gets it."""
        fields = read_message(index, message)
        if fields["role"] == "developer" and "developer" not in (self.chat_template or ""):
            fields["role"] = "system"
        return fields

    def _named_id(self, name: str) -> int | None:
        token = self._named_tokens.get(name)
        token_id: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return token_id

    def _eos_token_ids(self, folder: Path) -> frozenset[int]:
        """What ends an answer, from every file that says so: many models name their end of turn in only one."""
        config = read_json(folder / "config.json")
        sources = (read_json(folder / "generation_config.json"), config, config.get("text_config") or {})
        ids = {token_id for source in sources for token_id in _as_list(source.get("eos_token_id"))}
        named = self._named_id("eos_token")
        return frozenset(ids if named is None else ids | {named})


class Detokenizer:
    """Tokens of one answer in, text out, in linear time and never half a UTF-8 character.

    The pieces joined are ``Prompts.decode`` of all tokens. Bytes that are no UTF-8 become U+FFFD once that is certain.
    """

    def __init__(self, pieces: _Pieces, skipped: frozenset[int]) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain through these tokens; may be empty."""
        text = ""
        for token_id in token_ids:
            if token_id in self._skipped:
                continue
            if self._started:
                text += self._decoder.decode(self._pieces.inside(token_id))
            else:
                text += self._decoder.decode(self._pieces.first(token_id))
                self._started = bool(self._pieces.inside(token_id))
        return text

    def flush(self) -> str:
        """The end of the answer: whatever was held back, as U+FFFD if it is half a character."""
        return self._decoder.decode(b"", final=True)


class _Pieces:
    """The bytes of every token: at the start of a text, where many tokenizers drop a leading space, and inside one.

    Byte-level decoders map each character of a token to a byte. Sentencepiece-like ones write single bytes as
    ``<0xE2>``. All other text is asked of the tokenizer itself, after an ordinary token, so that what a decoder does to
    the first token of a text does not touch it.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: Mapping[str, Any] | None) -> None:
        steps = _decoder_steps(decoder)
        kinds = {step["type"] for step in steps}
        lookahead = kinds & {"BPEDecoder", "CTC"} or {step["type"] for step in steps if step.get("stop")}
        if lookahead or ("ByteLevel" in kinds and not kinds <= {"ByteLevel", "Fuse"}):
            raise ConfigurationError(
                f"This base's tokenizer decodes with {' + '.join(step['type'] for step in steps)}, "
                "which cannot be streamed token by token. Choose another base."
            )
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._inside: dict[int, bytes] = {}

    def inside(self, token_id: int) -> bytes:
        """What the token adds to a text that has begun."""
        piece = self._inside.get(token_id)
        if piece is None:
            piece = self._inside[token_id] = self._ask(token_id)
        return piece

    def first(self, token_id: int) -> bytes:
        """What the token is when it begins a text."""
        raw = self._raw_byte(token_id)
        if self._byte_level or (raw is not None and raw >= b"\x80"):
            return self.inside(token_id)
        return self._decode(token_id).encode()

    def _ask(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            mapped = [_BYTE_OF_CHARACTER.get(character) for character in token]
            return token.encode() if None in mapped else bytes(byte for byte in mapped if byte is not None)
        raw = self._raw_byte(token_id)
        if raw is not None:
            return raw
        anchor, anchor_text = self._anchor
        return self._decode(anchor, token_id)[len(anchor_text) :].encode()

    def _raw_byte(self, token_id: int) -> bytes | None:
        """The byte that a token like ``<0xE2>`` is, under a decoder that reads it so."""
        token = self._tokenizer.id_to_token(token_id) if self._byte_fallback else None
        if token is None or len(token) != 6 or not (token.startswith("<0x") and token.endswith(">")):
            return None
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            return None

    @cached_property
    def _anchor(self) -> tuple[int, str]:
        """An ordinary token and its text, for others to stand after."""
        for token_id in sorted(self._tokenizer.get_vocab(with_added_tokens=False).values()):
            text = self._decode(token_id)
            if text.isalnum() and self._decode(token_id, token_id).startswith(text):
                return token_id, text
        raise ConfigurationError("This base's tokenizer holds no token that is plain text. Fetch the base again.")

    def _decode(self, *token_ids: int) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text


def read_message(index: int, message: Any) -> dict[str, str]:
    """One of OpenAI's messages, strictly: every value a string that can be encoded, the content's parts joined.

    Raises ``InvalidRequest`` that names what is wrong with ``messages[index]``.
    """
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be an object with role and content.", param=where)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}.", param=f"{where}.role")
    fields = {
        "role": str(role),
        "content": _well_formed(_flatten(message.get("content"), where), f"{where}.content"),
    }
    for key, value in message.items():
        if (
            key in fields or value is None or value == []
        ):  # clients send back their answers with every unused field empty
            continue
        if key not in _EXTRA_FIELDS:
            raise InvalidRequest(f"{where}.{key} is not supported. Leave it out.", param=f"{where}.{key}")
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}.{key} must be a string.", param=f"{where}.{key}")
        fields[key] = _well_formed(value, f"{where}.{key}")
    return fields


def read_chat_template(folder: Path) -> str | None:
    """The base's default chat template, found where transformers would find it; None if it has none."""
    for name in ("chat_template.jinja", "chat_templates/default.jinja"):
        if (folder / name).is_file():
            return _read_text(folder / name)
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if template is None:
        template = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a base's folder; empty if there is no such file. ``ConfigurationError`` when it is broken."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON ({error}). Fetch the base again.") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a JSON object. Fetch the base again.")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. Fetch the base again.") from error


def _named_tokens(folder: Path) -> dict[str, str]:
    """``bos_token`` and its like, as templates see them. The newer file wins over ``special_tokens_map.json``."""
    merged = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    tokens = {name: merged.get(name) for name in _NAMED_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(known for known, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _flatten(content: Any, where: str) -> str:
    """OpenAI's content as one string. Text parts stand on lines of their own, as they do in other servers."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequest(
            f"{where}.content must be a string or a list of text parts, not {_described(content)}.",
            param=f"{where}.content",
        )
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise InvalidRequest(
                f"{where}.content[{number}] is of type {kind!r}; only text parts are supported.",
                param=f"{where}.content[{number}].type",
            )
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{where}.content[{number}].text must be a string.", param=f"{where}.content[{number}].text"
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _described(value: Any) -> str:
    return "null" if value is None else "an empty list" if value == [] else f"a {type(value).__name__}"


def _well_formed(text: str, where: str) -> str:
    """JSON can smuggle in half of a surrogate pair, which is no character and which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{where} holds half of a surrogate pair (\\u{ord(text[error.start]):04x}). Send valid Unicode.",
            param=where,
        ) from error
    return text


def _decoder_steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _decoder_steps(inner)]
    return [decoder]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the other 68 for the characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's words for trainers; the text is just its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str, folder: Path) -> jinja2.Template:
    """A template comes from strangers: it runs in the sandbox, with the helpers that transformers gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigurationError(
            f"The chat template in {folder} is broken (line {error.lineno}: {error.message}). Fetch the base again."
        ) from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes for HTML, which no model has ever seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
