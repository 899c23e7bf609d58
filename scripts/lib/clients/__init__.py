"""An environment with clients of OpenAI's API that other people have written, for `scripts/test --clients`."""
