"""What the pipeline asks of OpenAI-compatible servers, and what it paid for."""
