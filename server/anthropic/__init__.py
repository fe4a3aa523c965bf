"""Anthropic's Messages API: its requests become chats, and its answers and errors have Anthropic's shapes."""
