"""The OpenAI API: request bodies, answers and their streams."""
