"""The clients, and the features that a server may have."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

FEATURES = {
    "Chat": ("models", "chat", "streaming", "logprobs", "structured output", "completions"),
    "Tools": ("tools: required", "tools: named", "tools: history", "tools: streaming"),
    "Responses": ("responses", "responses: streaming", "responses: tools", "responses: structured output"),
    "Messages": ("messages", "messages: streaming", "messages: tools", "messages: token count"),
    "Embeddings and batches": ("embeddings", "batches"),
    "Errors": ("error 400", "error 401", "error 404", "error 429"),
}
"""By the table that they are shown in."""

BUSY = "error 429"
"""The feature that is tried while the server has no room for a further answer."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client.

    Attributes:
        title: What it is called in the tables.
        package: Whose pinned version is named in the tables.
        environment: See ``environments.ENVIRONMENTS``.
        script: Below ``scripts``.
    """

    title: str
    package: str
    environment: str
    script: str

    @property
    def version(self) -> str:
        """Of the package, as the environment pins it."""
        if self.environment == "node":
            return str(json.loads((FOLDER / "node" / "package.json").read_text())["dependencies"][self.package])
        pins = (FOLDER / "requirements" / f"{self.environment}.txt").read_text()
        (version,) = re.findall(rf"^{re.escape(self.package)}==(\S+)$", pins, re.MULTILINE)
        return str(version)


OPENAI_PYTHON = Client(title="openai, Python", package="openai", environment="openai", script="openai_client.py")

CLIENTS = (
    OPENAI_PYTHON,
    Client(title="openai, Node", package="openai", environment="node", script="openai_client.mjs"),
    Client(title="anthropic, Python", package="anthropic", environment="openai", script="anthropic_client.py"),
    Client(title="litellm", package="litellm", environment="openai", script="litellm_client.py"),
    Client(title="LangChain", package="langchain-openai", environment="openai", script="langchain_client.py"),
    Client(
        title="LlamaIndex",
        package="llama-index-llms-openai-like",
        environment="llama-index",
        script="llama_index_client.py",
    ),
    Client(title="Instructor", package="instructor", environment="instructor", script="instructor_client.py"),
    Client(title="Pydantic AI", package="pydantic-ai-slim", environment="openai", script="pydantic_ai_client.py"),
    Client(title="OpenAI Agents", package="openai-agents", environment="openai", script="openai_agents_client.py"),
    Client(title="AI SDK, openai", package="@ai-sdk/openai", environment="node", script="ai_sdk_openai.mjs"),
    Client(
        title="AI SDK, openai-compatible",
        package="@ai-sdk/openai-compatible",
        environment="node",
        script="ai_sdk_compatible.mjs",
    ),
    Client(title="AI SDK, anthropic", package="@ai-sdk/anthropic", environment="node", script="ai_sdk_anthropic.mjs"),
    Client(title="lm-eval", package="lm_eval", environment="lm-eval", script="lm_eval_client.py"),
    Client(title="GuideLLM", package="guidellm", environment="guidellm", script="guidellm_client.py"),
)
