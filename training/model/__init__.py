"""The computation of a training step: the adapter on its base, packed attention, the loss head, the anchor."""
