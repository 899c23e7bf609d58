"""Text to token ids and back: tokenizer, chat template, streaming decoder, stop strings.

May import: values, models.
"""
