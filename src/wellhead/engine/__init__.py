"""Who runs when, on which memory: requests, pages, the scheduler and the `LLM` door."""
