"""Between text and token ids: tokenizer, chat template, streaming decoder, stop strings.

May import: values, models.
"""
