"""Tokenization and detokenization: equal to transformers', streamed exactly and in linear time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.prompts.prompts import Prompts

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Why?"}],
    [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three, in   order:\n\n1. a\n\n2. b\t\t10 000"},
    ],
    [{"role": "user", "content": "Grüße aus 東京 – naïve café, Привет, שלום, ¡olé!"}],
    [{"role": "user", "content": "👩‍👩‍👧‍👦 🏳️‍🌈 🤷🏽‍♀️ 𝠀 end"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "  leading and trailing  \n"}, {"role": "assistant", "content": " \n "}],
    [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\nno<|endoftext|>"}],
    [{"role": "user", "content": "{{ messages }} {% if x %} \\n \x00 \u202e"}],
    [{"role": "user", "content": "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": None}  # don't\r\n"}],
    [{"role": "user", "content": "x" * 3000 + " word" * 500}],
]


@pytest.fixture(scope="module")
def prompts(embedded_base: BaseInfo) -> Prompts:
    return Prompts(Path(embedded_base.path))


@pytest.fixture(scope="module")
def transformers_tokenizer(embedded_base: BaseInfo) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_base.path, local_files_only=True)


# --- messages to tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_conversation_is_the_tokens_that_transformers_makes(
    prompts: Prompts, transformers_tokenizer: Any, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    ours = prompts.chat(messages, add_generation_prompt=add_generation_prompt)
    theirs = transformers_tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
    assert ours == theirs["input_ids"]
    rendered = transformers_tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    assert prompts.render(messages, add_generation_prompt=add_generation_prompt) == rendered


@pytest.mark.parametrize("text", ["", " ", "Hello", "1. a\n\n2. b", "東京 🤷🏽‍♀️", "<|im_start|>user\nhi"])
def test_a_plain_prompt_is_the_tokens_that_transformers_makes(
    prompts: Prompts, transformers_tokenizer: Any, text: str
) -> None:
    assert prompts.encode(text) == transformers_tokenizer(text)["input_ids"]


def test_long_texts_are_the_same_tokens_without_holding_up_others(prompts: Prompts) -> None:
    text = "Ein Text, é, \U0001f600 und mehr.\n" * 200
    assert len(text) > 4096
    assert prompts.encode(text) == prompts._tokenizer.encode(text).ids
    asked = [{"role": "user", "content": text}]
    assert prompts.chat(asked) == prompts._tokenizer.encode(prompts.render(asked), add_special_tokens=False).ids


def test_what_cannot_fit_is_refused_before_it_is_tokenized(prompts: Prompts) -> None:
    spaces = "\n" + " " * 80  # the longest token there is
    longest = spaces * 10
    assert len(prompts.encode(longest, max_length=10)) >= 10
    with pytest.raises(InvalidRequest, match="context of 10 tokens can hold") as caught:
        prompts.encode(longest + " ", max_length=10)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(InvalidRequest, match="can hold") as caught:
        prompts.chat([{"role": "user", "content": longest}], max_length=10)
    assert caught.value.param == "messages"


def test_digits_stand_apart_as_in_training(prompts: Prompts) -> None:
    assert [prompts.token_text(token) for token in prompts.encode("Go:\n\n1. x 12")] == [
        *("Go", ":", "\n\n", "1", ".", " x", " ", "1", "2"),
    ]


def test_what_is_known_of_the_embedded_vocabulary(prompts: Prompts) -> None:
    assert prompts.vocab_size == 49152
    assert prompts.eos_token_ids == {2}
    assert prompts.bos_token_id == 1


def test_text_parts_stand_on_lines_of_their_own(prompts: Prompts) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert prompts.chat(parts) == prompts.chat([{"role": "user", "content": "a\nb"}])


def test_developer_is_system_for_a_template_that_does_not_know_it(prompts: Prompts) -> None:
    question = {"role": "user", "content": "?"}
    assert prompts.chat([{"role": "developer", "content": "Be brief."}, question]) == prompts.chat(
        [{"role": "system", "content": "Be brief."}, question]
    )


def test_an_answer_sent_back_with_its_unused_fields_is_fine(prompts: Prompts) -> None:
    answer = {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": None, "annotations": []}
    question = {"role": "user", "content": "Sure?"}
    assert prompts.chat([question, answer]) == prompts.chat([question, {"role": "assistant", "content": "Yes."}])


@pytest.mark.parametrize(
    ("messages", "param", "says"),
    [
        ([], "messages", "empty"),
        (["hi"], "messages[0]", "object"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "messages[1].role", "None"),
        ([{"role": "robot", "content": "a"}], "messages[0].role", "system, developer, user, assistant"),
        ([{"role": "tool", "content": "a"}], "messages[0].tool_call_id", "no tool call before it"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role", "user"),
        ([{"role": "user"}], "messages[0].content", "null"),
        ([{"role": "user", "content": []}], "messages[0].content", "an empty list"),
        ([{"role": "user", "content": 5}], "messages[0].content", "int"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
            "image_url",
        ),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0].type", "None"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "string"),
        ([{"role": "user", "content": "half \ud83d a pair"}], "messages[0].content", "surrogate"),
        ([{"role": "user", "content": "a", "name": "\udc00"}], "messages[0].name", "surrogate"),
        ([{"role": "user", "content": "a", "name": 5}], "messages[0].name", "string"),
        ([{"role": "user", "content": "a", "tool_calls": [{}]}], "messages[0].tool_calls", "not supported"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], "messages[0].tool_calls", "a list of tool calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]", "an object like"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "no JSON",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "JSON object, not of a list",
        ),
    ],
)
def test_a_wrong_message_is_named(prompts: Prompts, messages: Sequence[Any], param: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompts.chat(messages)
    assert refused.value.param == param
    assert says in refused.value.message


def test_half_a_surrogate_in_a_plain_prompt_is_refused(prompts: Prompts) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        prompts.encode("a\ud800")


# --- chat templates ---------------------------------------------------------------------------------------------------


def with_template(tmp_path: Path, base: BaseInfo, template: str | None, **tokenizer_config: Any) -> Prompts:
    """The embedded tokenizer under another chat template."""
    shutil.copy(Path(base.path) / "tokenizer.json", tmp_path)
    end = {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False}
    config = {"bos_token": "<|im_start|>", "eos_token": end} | tokenizer_config
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    return Prompts(tmp_path)


TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n    U:{{ m.content | trim }}\n"
    "  {% else %}{% generation %}A:{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}\n{% endfor %}",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{% if add_generation_prompt %}<ü>{% endif %}{{ tools is none }}{{ documents }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    "{{ unk_token is defined }}{{ strftime_now('%Y') }}",
]


@pytest.mark.parametrize("said", ["It is", " It is ", "It is\n", "ä"])
@pytest.mark.parametrize("trims", [False, True])
def test_a_message_is_continued_as_in_transformers(
    tmp_path: Path, embedded_base: BaseInfo, said: str, trims: bool
) -> None:
    from transformers import AutoTokenizer

    content = "m.content | trim" if trims else "m.content"
    template = "{% for m in messages %}<{{ m.role }}>{{ " + content + " }}</>{% endfor %}{{ tone }}"
    ours = with_template(tmp_path, embedded_base, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    messages = [{"role": "user", "content": "It is?"}, {"role": "assistant", "content": said}]
    expected = theirs.apply_chat_template(messages, continue_final_message=True, tokenize=False)
    assert ours.render(messages, continue_final_message=True) == expected
    assert ours.render(messages, continue_final_message=True).rstrip().endswith(said.strip())
    loud = ours.render(messages, add_generation_prompt=False, template_kwargs={"tone": "loud", "bos_token": "x"})
    assert loud == theirs.apply_chat_template(messages, tokenize=False, tone="loud")


def test_a_message_without_a_text_is_not_continued(prompts: Prompts) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        prompts.render(messages, continue_final_message=True)


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_templates_render_as_in_transformers(tmp_path: Path, embedded_base: BaseInfo, template: str) -> None:
    from transformers import AutoTokenizer

    ours = with_template(tmp_path, embedded_base, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    messages = [
        {"role": "user", "content": " <a> & 'ß' "},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c", "name": "Zoë"},
    ]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours.render(messages) == expected
    assert ours.eos_token_ids == {theirs.eos_token_id}


def test_a_template_may_refuse_in_its_own_words(tmp_path: Path, embedded_base: BaseInfo) -> None:
    prompts = with_template(tmp_path, embedded_base, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        prompts.chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{{ messages[7].content + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_runs_in_the_sandbox_and_fails_as_a_refusal(
    tmp_path: Path, embedded_base: BaseInfo, template: str
) -> None:
    prompts = with_template(tmp_path, embedded_base, template)
    with pytest.raises(InvalidRequest, match="chat template"):
        prompts.chat([{"role": "user", "content": "a"}])


def test_no_template_means_no_chat_but_completions(tmp_path: Path, embedded_base: BaseInfo) -> None:
    prompts = with_template(tmp_path, embedded_base, None)
    with pytest.raises(InvalidRequest, match="/v1/completions") as refused:
        prompts.chat([{"role": "user", "content": "a"}])
    assert refused.value.code == "no_chat_template"
    assert prompts.encode("a")


@pytest.mark.parametrize("kept", ["config", "named", "json"])
def test_templates_are_found_where_older_models_keep_them(tmp_path: Path, embedded_base: BaseInfo, kept: str) -> None:
    if kept == "json":
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
        prompts = with_template(tmp_path, embedded_base, None)
    else:
        template = (
            "old" if kept == "config" else [{"name": "rag", "template": "no"}, {"name": "default", "template": "old"}]
        )
        prompts = with_template(tmp_path, embedded_base, None, chat_template=template)
    assert prompts.render([{"role": "user", "content": "a"}]) == "old"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("chat_template.jinja", "{% if %}"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, embedded_base: BaseInfo, name: str, content: str | None) -> None:
    with_template(tmp_path, embedded_base, "fine")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=r"tokenizer|template"):
        Prompts(tmp_path)


def test_end_tokens_are_gathered_from_every_file(tmp_path: Path, embedded_base: BaseInfo) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 7}}))
    assert with_template(tmp_path, embedded_base, None).eos_token_ids == {2, 5, 6, 7}


def test_a_tokenizer_saved_with_truncation_does_not_truncate(tmp_path: Path, embedded_base: BaseInfo) -> None:
    tokenizer = Tokenizer.from_file(str(Path(embedded_base.path) / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(Prompts(tmp_path).encode("word " * 100)) > 90
    assert len(Prompts(tmp_path).encode("word")) == 1


# --- tokens to text ---------------------------------------------------------------------------------------------------


def sentencepiece_like(*, strips: bool) -> Tokenizer:
    """A small tokenizer of Llama's (strips a leading space) or Gemma's kind: metaspace pieces and single bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "▁the", "▁cat", "cat", "s", "▁s", "é", "東", "▁.", ".", "a", "▁a", "\n", "�", "<0xZZ>"]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in pieces[:3]])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    return tokenizer


def metaspace() -> Tokenizer:
    """The older sentencepiece decoder, which drops what marks a space at the start of a text."""
    vocabulary = [("<unk>", 0.0), ("▁", -1.0), ("▁▁", -1.5), ("▁the", -2.0), ("cat", -2.0), ("▁cat", -2.5), ("s", -3.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_level() -> Tokenizer:
    """A toy without any decoder: tokens are joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, ".": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def word_piece() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "the": 1, "##s": 2, "cat": 3, "##cat": 4, ".": 5}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


SMALL_TOKENIZERS = {
    "llama-like": sentencepiece_like(strips=True),
    "gemma-like": sentencepiece_like(strips=False),
    "metaspace": metaspace(),
    "word-level": word_level(),
    "word-piece": word_piece(),
}


def in_folder(tokenizer: Tokenizer, folder: Path) -> Prompts:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Prompts(folder)


@pytest.fixture(scope="module")
def small_prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prompts]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: in_folder(tokenizer, folder / name) for name, tokenizer in SMALL_TOKENIZERS.items()}


def streamed(prompts: Prompts, token_ids: Sequence[int], chunk: int = 1) -> list[str]:
    stream = prompts.stream()
    chunks = [token_ids[start : start + chunk] for start in range(0, len(token_ids), chunk)]
    return [*(stream.push(ids) for ids in chunks), stream.flush()]


any_tokens = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@any_tokens
@given(st.lists(st.integers(0, 49151), max_size=40), st.integers(1, 5))
@example([220, 0, 220], 1)
def test_streamed_byte_level_text_is_the_full_decode(prompts: Prompts, token_ids: list[int], chunk: int) -> None:
    """Random tokens of the embedded base are mostly broken UTF-8; what transformers' tokenizer says is the oracle."""
    expected = prompts._tokenizer.decode(token_ids, skip_special_tokens=True)
    assert "".join(streamed(prompts, token_ids, chunk)) == expected
    assert prompts.decode(token_ids) == expected
    everything = prompts._tokenizer.decode(token_ids, skip_special_tokens=False)
    assert prompts.decode(token_ids, skip_special_tokens=False) == everything


@any_tokens
@given(st.text(), st.integers(1, 5))
@example("👩‍👩‍👧‍👦 naïve 東京\n\n1.", 1)
def test_text_survives_the_way_through_tokens(prompts: Prompts, text: str, chunk: int) -> None:
    token_ids = prompts._tokenizer.encode(text, add_special_tokens=False).ids
    expected = prompts._tokenizer.decode(token_ids)
    pieces = streamed(prompts, token_ids, chunk)
    assert "".join(pieces) == expected
    if "\ufffd" not in expected:
        assert not any("\ufffd" in piece for piece in pieces), "half a character was shown"


@any_tokens
@given(st.data(), st.sampled_from(sorted(SMALL_TOKENIZERS)), st.integers(1, 5))
def test_streamed_text_is_the_full_decode(
    small_prompts: dict[str, Prompts], data: st.DataObject, kind: str, chunk: int
) -> None:
    prompts, tokenizer = small_prompts[kind], SMALL_TOKENIZERS[kind]
    bytes_of_characters = [[3 + byte for byte in character.encode()] for character in "é東🤷\n A"]
    whole = st.sampled_from(bytes_of_characters) if "like" in kind else st.just([])
    ordinary = [
        token
        for token in range(tokenizer.get_vocab_size())
        if not (tokenizer.id_to_token(token) or "").startswith("<0x")
    ]
    units = data.draw(st.lists(st.one_of(whole, st.sampled_from(ordinary).map(lambda token: [token])), max_size=30))
    token_ids = [token for unit in units for token in unit]
    expected = tokenizer.decode(token_ids, skip_special_tokens=True)
    assert "".join(streamed(prompts, token_ids, chunk)) == expected
    assert prompts.decode(token_ids) == expected


@any_tokens
@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 5))
def test_streamed_broken_bytes_are_the_decode_of_the_bytes(
    small_prompts: dict[str, Prompts], token_ids: list[int], chunk: int
) -> None:
    """A run of byte tokens that is no UTF-8: each part that is wrong is one U+FFFD, as the Unicode standard advises."""
    prompts = small_prompts["gemma-like"]
    shown = b"".join(prompts.token_bytes(token) for token in token_ids if token not in (0, 1, 2))
    assert "".join(streamed(prompts, token_ids, chunk)) == shown.decode("utf-8", "replace")


def test_half_a_character_waits_for_the_rest(small_prompts: dict[str, Prompts]) -> None:
    stream = small_prompts["llama-like"].stream()
    first, *middle, last = [3 + byte for byte in "🤷".encode()]
    assert [stream.push([token]) for token in (first, *middle)] == ["", "", ""]
    assert stream.push([last]) == "🤷"
    assert stream.push([first]) == ""
    assert stream.flush() == "\ufffd"


def test_only_the_first_space_of_an_answer_is_dropped(small_prompts: dict[str, Prompts]) -> None:
    tokenizer = SMALL_TOKENIZERS["llama-like"]
    the, cat = tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁cat")
    assert streamed(small_prompts["llama-like"], [1, the, 2, cat]) == ["", "the", "", " cat", ""]
    assert small_prompts["llama-like"].token_text(the) == " the"


def test_tokens_for_logprobs(small_prompts: dict[str, Prompts], prompts: Prompts) -> None:
    llama = small_prompts["llama-like"]
    assert llama.token_text(3 + 0xE2) == "bytes:\\xe2"
    assert llama.token_bytes(3 + 0xE2) == b"\xe2"
    assert llama.token_text(3 + 0x41) == "A"
    assert llama.token_text(SMALL_TOKENIZERS["llama-like"].token_to_id("<0xZZ>")) == "<0xZZ>"
    assert prompts.token_text(2) == "<|im_end|>"
    assert prompts.token_text(10**6) == ""
    assert b"".join(prompts.token_bytes(token) for token in prompts.encode("é 🤷")) == "é 🤷".encode()


def test_streaming_is_linear_even_when_no_character_ever_completes(small_prompts: dict[str, Prompts]) -> None:
    """Twenty times the tokens take about twenty times as long; a decoder that starts over each time takes 400 times."""

    def seconds(num_tokens: int) -> float:
        stream = small_prompts["llama-like"].stream()
        begin = time.thread_time()
        for _ in range(num_tokens):
            stream.push([3 + 0xE2])
        stream.flush()
        return time.thread_time() - begin

    short = min(seconds(2_000) for _ in range(5))
    assert min(seconds(40_000) for _ in range(2)) < 120 * short


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
    ],
    ids=["CTC", "BPEDecoder", "ByteLevel", "Strip"],
)
def test_a_decoder_that_looks_ahead_is_refused_by_name(
    tmp_path: Path, decoder: Any, request: pytest.FixtureRequest
) -> None:
    tokenizer = word_level()
    tokenizer.decoder = decoder
    with pytest.raises(ConfigurationError, match=request.node.callspec.id):
        in_folder(tokenizer, tmp_path / "base")


def test_a_plain_prompt_begins_with_what_the_post_processor_adds(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(strips=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    prompts = in_folder(tokenizer, tmp_path / "base")
    assert prompts.encode("a")[0] == 1
    assert prompts.chat([{"role": "user", "content": "a"}]) == prompts.encode("a")[1:]
