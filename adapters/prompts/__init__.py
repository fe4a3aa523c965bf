"""Messages to token ids and token ids to text, for serving and training alike."""
