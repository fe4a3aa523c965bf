"""How bases write tool calls: found out from the chat templates of model families, and told to those without tools."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.adapters.prompts.tool_calls import HERMES, ToolCallFormat

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
QUESTION = {"role": "user", "content": "Weather in Kraków?"}


def call(city: str, id: str = "call_1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [call("Kraków", "a"), call("Paris", "b")]},
    {"role": "tool", "tool_call_id": "a", "content": "18 °C"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "20 °C"}]},
    {"role": "assistant", "content": "18 and 20."},
    {"role": "user", "content": "And tomorrow?"},
]

#: By the files that TRL has of them.
FAMILIES: dict[str, ToolCallFormat] = {
    "qwen2_5": ToolCallFormat(HERMES.opening, HERMES.middle, HERMES.closing, HERMES.between, native=True),
    "qwen3": ToolCallFormat(HERMES.opening, HERMES.middle, HERMES.closing, HERMES.between, native=True),
    "qwen3_instruct_2507": ToolCallFormat(HERMES.opening, HERMES.middle, HERMES.closing, HERMES.between, native=True),
    "llama3_1": ToolCallFormat('{"name": "', '", "parameters": ', "}", None, native=True),
    "llama3_2": ToolCallFormat('{"name": "', '", "parameters": ', "}", None, native=True),
    **dict.fromkeys(["gemma", "gemma3", "phi3", "cohere2", "deepseek_r1_distill", "deepseekv3", "llama3"], HERMES),
    # Their calls are no JSON.
    **dict.fromkeys(["qwen3_5_think", "glm4moe", "lfm2_2_5", "gemma4"], HERMES),
}


def template_of(family: str) -> str:
    found = find_spec("trl")
    assert found is not None
    assert found.origin is not None
    return (Path(found.origin).parent / "chat_templates" / f"{family}.jinja").read_text()


def prompts_with(template: str, base: BaseInfo, folder: Path, **end: str) -> Prompts:
    """The embedded base's, with another chat template."""
    copy = folder / "base"
    shutil.copytree(base.path, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "chat_template.jinja").write_text(template)
    return Prompts(copy)


@pytest.fixture(scope="module")
def prompts(embedded_base: BaseInfo) -> Prompts:
    return Prompts(Path(embedded_base.path))


@pytest.mark.parametrize(("family", "format"), FAMILIES.items(), ids=FAMILIES)
def test_each_familys_format_is_found_in_its_template(
    embedded_base: BaseInfo, tmp_path: Path, family: str, format: ToolCallFormat
) -> None:
    prompts = prompts_with(template_of(family).replace("<|eot_id|>", "<|im_end|>"), embedded_base, tmp_path)
    assert prompts.tool_call_format == format
    number = 2 if format.between else 1
    asked = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call("K", "a"), call("P", "b")][:number]}]
    written = format.opening + "weather" + format.middle + '{"city": "K"}'
    if format.between:
        written += format.between + "weather" + format.middle + '{"city": "P"}'
    rendered = prompts.render(asked, tools=TOOLS, add_generation_prompt=False)
    assert written + format.closing in rendered
    assert "The weather in a city" in rendered


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "gemma3", "cohere2", "llama3"])
def test_calls_results_and_tools_are_shown(embedded_base: BaseInfo, tmp_path: Path, family: str) -> None:
    prompts = prompts_with(template_of(family), embedded_base, tmp_path)
    rendered = prompts.render(CONVERSATION, tools=TOOLS)
    places = [rendered.index(text) for text in ("Weather in", '{"city": "Kraków"}', "18 °C", "20 °C", "18 and 20.")]
    assert places == sorted(places)
    assert '"name": "weather"' in rendered
    assert "Be brief." in rendered


def test_a_template_with_tools_renders_what_transformers_does(embedded_base: BaseInfo, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    prompts = prompts_with(template_of("qwen3"), embedded_base, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base", local_files_only=True)
    objects = json.loads(json.dumps(CONVERSATION))
    for asked in objects[2]["tool_calls"]:
        asked["function"]["arguments"] = json.loads(asked["function"]["arguments"])
    objects[2]["content"], objects[4]["content"] = "", "20 °C"
    theirs = tokenizer.apply_chat_template(objects, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    assert prompts.render(CONVERSATION, tools=TOOLS) == theirs


def test_a_base_without_tools_is_told_in_its_system_message(prompts: Prompts) -> None:
    assert prompts.tool_call_format == HERMES
    assert prompts.render([QUESTION], tools=TOOLS) == (
        "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "description": "The weather in a city", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather in Kraków?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts.render(CONVERSATION, tools=TOOLS).startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    # Without tools the history stays what it was.
    history = prompts.render(CONVERSATION[2:4] + CONVERSATION[4:5], add_generation_prompt=False)
    assert history.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Kraków"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n18 °C\n</tool_response>\n<tool_response>\n20 °C\n</tool_response>"
        "<|im_end|>\n"
    )


def test_a_template_without_system_messages_is_told_by_the_first_user(embedded_base: BaseInfo, tmp_path: Path) -> None:
    prompts = prompts_with(template_of("gemma"), embedded_base, tmp_path)
    with pytest.raises(InvalidRequest, match="ystem"):
        prompts.render([{"role": "system", "content": "x"}, QUESTION])
    assert "<start_of_turn>user\n# Tools" in prompts.render([QUESTION], tools=TOOLS)
    assert "</tool_call>\n\nWeather in Kraków?" in prompts.render([QUESTION], tools=TOOLS)


def test_added_tokens_in_the_format_are_named_by_their_ids() -> None:
    format = HERMES.with_tokens({"<tool_call>": 7, "</tool_call>": 8, "<other>": 9})
    assert format.tokens == {"<tool_call>": 7, "</tool_call>": 8}
    assert format.pieces(format.opening) == [7, '\n{"name": "']
    assert format.pieces(format.between or "") == ["}\n", 8, "\n", 7, '\n{"name": "']
    assert (format.marker, format.end_marker) == ("<tool_call>", "</tool_call>")
