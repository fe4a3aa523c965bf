"""What one training step computes: the adapter on its base, packed attention, the loss head, the anchor."""
