"""The small version of the paper's matrix: pairs of models, kinds of prompts, and every setting of speculation."""
