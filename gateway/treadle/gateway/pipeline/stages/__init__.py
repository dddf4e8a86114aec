"""The stages that a batch goes through."""
