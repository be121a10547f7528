"""The captioner's library: images, captions, features, decoders, training, decoding, scores."""
