"""Every architecture and every adapter in plain torch."""
