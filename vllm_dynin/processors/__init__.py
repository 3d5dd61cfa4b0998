"""Media and chat on the way in, ids to text, images and waveforms on the way out."""
