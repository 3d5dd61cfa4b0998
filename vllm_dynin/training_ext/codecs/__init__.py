"""Small codecs trained from nothing, for tests and demos; the published ones are frozen."""
