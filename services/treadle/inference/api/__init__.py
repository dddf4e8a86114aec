"""The inference API: servicer, message codec, admission."""
