"""What the methods that use a sparse autoencoder share."""
