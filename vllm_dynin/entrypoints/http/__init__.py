"""HTTP routes beside vLLM's own: images, speech, transcriptions, and chat that answers in media."""
