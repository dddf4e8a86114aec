"""Prediction records: written to disk before answers leave, sent to the evaluation service afterwards."""
