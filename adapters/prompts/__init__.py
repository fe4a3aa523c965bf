"""Messages to tokens and tokens to text, for serving and for training alike."""
