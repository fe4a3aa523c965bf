"""Weights, order and additions of training rows: class balance, curriculum, replay of earlier rounds, paraphrases."""
