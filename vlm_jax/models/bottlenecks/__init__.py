"""What stands between the encoder and the decoder of an autoencoder: nothing, noise, or a choice among codes."""
