"""The comparison inside vLLM: its environment, servers with and without the plugin, drafters, and what they show."""
