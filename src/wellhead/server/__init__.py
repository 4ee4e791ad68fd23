"""The door: an OpenAI-compatible server over the engine. Needs the extra `serve`."""
