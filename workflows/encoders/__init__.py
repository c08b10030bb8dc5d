"""Making the embedded encoders anew."""
