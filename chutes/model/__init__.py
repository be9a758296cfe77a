"""What a model is: where its files come from, and its facts, read without downloading weights."""
