"""Which rows are learned how often and in which order: class balance, curriculum, replay of older rounds,
paraphrases."""
